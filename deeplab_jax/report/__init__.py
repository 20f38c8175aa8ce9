"""`deeplab-jax report`: a run as one HTML page."""
