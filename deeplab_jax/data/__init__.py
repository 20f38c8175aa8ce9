"""Read image and label files into NumPy batches.

This is the only package that imports TensorFlow. It does not import JAX, so callers pass in the process index and count.
"""

import os

# TensorFlow reads this log level when it is imported. Level 3 hides messages about CPU features, as well as read errors that
# `samples.diagnose` explains better. JAX sets the variable to 1, so only an explicit 0 is kept.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# On CPUs with AVX-512 VNNI, TensorFlow would otherwise use oneDNN kernels, which round differently. TensorFlow also announces
# those kernels at every log level.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
