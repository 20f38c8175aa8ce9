"""`deeplab-jax plan`: estimate whether a training run fits into device memory, and how long it takes at least.

Planning needs no data set and runs no training steps.
"""
