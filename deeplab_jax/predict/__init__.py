"""Predict the user's own images and videos."""
