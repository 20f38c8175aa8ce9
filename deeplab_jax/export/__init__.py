"""Export trained networks, including preprocessing, to StableHLO and ONNX files, and check each file before keeping it."""
