"""Training: the state, optimizer, step, loop, checkpoints and logs. The loop accepts any iterator over NumPy batches."""
