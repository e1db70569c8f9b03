"""mmrl: train, evaluate and run multimodal reasoners."""

__version__ = "0.1.0"
