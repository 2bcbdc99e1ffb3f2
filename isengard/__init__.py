"""Train an identity LoRA of a character and make images with it."""

__version__ = "0.1.0"
