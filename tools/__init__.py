if __name__ == "tools":
    raise ImportError("this folder is part of mmrl: write 'import mmrl.tools', not 'import tools'")
