"""The commands of the console script `deeplab-jax`, and the implementation of train.py and eval.py."""
