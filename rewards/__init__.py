if __name__ == "rewards":
    raise ImportError("this folder is part of mmrl: write 'import mmrl.rewards', not 'import rewards'")
