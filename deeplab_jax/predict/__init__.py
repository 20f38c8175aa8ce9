"""Predictions for people's own images and videos."""
