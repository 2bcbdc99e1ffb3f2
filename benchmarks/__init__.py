"""Measurements of the trainer, each ending by itself: ``python -m benchmarks.train_step`` and ``.resume``."""
