"""Evaluate a network: compute predictions, scores and visualisations from image batches."""
