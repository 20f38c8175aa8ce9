"""Save checkpoints to disk, restore them, and verify them by their checksums."""
