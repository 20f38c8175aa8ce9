"""Evaluate a network: compute predictions, scores and pictures from batches of images."""
