"""Weights of torchvision, timm and mmsegmentation: read, recognised, renamed; and the way back."""
