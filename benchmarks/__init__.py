"""Measurements that end by themselves: ``python -m benchmarks.train_step``, ``.engines``, ``.resume`` and ``.page``."""
