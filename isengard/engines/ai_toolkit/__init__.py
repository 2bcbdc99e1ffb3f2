"""AI-Toolkit as a training engine, called in the same process.

It is no package: `checkout.load` puts a checkout on the import path for the time of its import. `process` is the small
subclass of its trainer whose hooks lead to ours; `run` holds everything that is worth testing without it.
"""
