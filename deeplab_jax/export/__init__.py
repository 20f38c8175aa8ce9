"""Export trained networks with their preprocessing to StableHLO and ONNX files, and check each file before it is kept."""
