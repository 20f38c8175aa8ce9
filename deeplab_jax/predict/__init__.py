"""Run trained networks on the user's own images and videos."""
