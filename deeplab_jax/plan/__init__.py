"""`deeplab-jax plan`: estimate the minimum duration of a training run, and whether it fits into device memory.

Planning needs no data set and runs no training steps.
"""
