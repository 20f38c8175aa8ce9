"""Read image and label files into NumPy batches.

This is the only package that imports TensorFlow. It does not import JAX: the process index and the process count are
arguments.
"""

import os

# Set this before TensorFlow is imported below. Level 3 hides logs about CPU features, and read errors that `samples.diagnose`
# explains better. JAX sets the variable to 1, so only an explicit 0 is kept.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# On CPUs with AVX-512 VNNI, TensorFlow would use oneDNN kernels. They round differently, and TensorFlow announces them at every
# log level.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
