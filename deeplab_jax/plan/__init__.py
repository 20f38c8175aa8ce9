"""`deeplab-jax plan`: estimate whether a training run fits into device memory, and the least time it can take.

It needs no data set and runs no training step.
"""
