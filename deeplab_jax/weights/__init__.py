"""Import the weights of torchvision, timm and mmsegmentation, and export weights to their formats."""
