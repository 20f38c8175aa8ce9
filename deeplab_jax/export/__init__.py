"""Trained networks as files that run elsewhere: StableHLO and ONNX, preprocessing inside, checked before they are kept."""
