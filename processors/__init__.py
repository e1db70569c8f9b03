if __name__ == "processors":
    raise ImportError("this folder is part of mmrl: write 'import mmrl.processors', not 'import processors'")
