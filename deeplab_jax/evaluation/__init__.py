"""From a network and batches to predictions, scores and pictures."""
