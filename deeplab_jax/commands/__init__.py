"""The `deeplab-jax` commands, and the implementations of train.py and eval.py."""
