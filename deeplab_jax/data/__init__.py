"""From files to NumPy batches. TensorFlow lives here and nowhere else; JAX does not: process index and count are arguments."""
