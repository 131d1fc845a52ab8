"""Detection by torchvision's parts: images with boxes, how regions are found on a backbone's map, and classified."""
