"""Compute a network's predictions, scores and visualisations for batches of images."""
