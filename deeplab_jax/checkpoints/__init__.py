"""Save and restore checkpoints, and verify their checksums."""
