"""`deeplab-jax plan`: whether a training fits into its devices, and how long it takes at least. No data set, no step."""
