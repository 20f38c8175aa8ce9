"""From files to NumPy batches. TensorFlow lives here and nowhere else; JAX does not: process index and count are arguments."""

import os

# Before TensorFlow is imported below: it reports every CPU feature otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
