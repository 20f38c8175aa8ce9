"""From files to NumPy batches. TensorFlow lives here and nowhere else; JAX does not: process index and count are arguments."""

import os

# Before TensorFlow is imported below: it reports CPU features, and errors that `samples.diagnose` says better. JAX sets 1.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# On CPUs with AVX-512 VNNI TensorFlow would swap in oneDNN's kernels, which round otherwise, and say so at any log level.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
