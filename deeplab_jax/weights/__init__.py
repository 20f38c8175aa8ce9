"""Import torchvision, timm and mmsegmentation weights, and export weights for torchvision and mmsegmentation."""
