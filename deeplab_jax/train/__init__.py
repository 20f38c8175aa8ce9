"""Training: state, optimizer, step, loop, checkpoints, logs. It takes any iterator of NumPy batches."""
