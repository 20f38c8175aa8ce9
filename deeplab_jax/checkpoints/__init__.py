"""Checkpoints on disk: saved, restored, verified by checksums."""
