"""Detectors, usable as torchvision's: Mask and Faster R-CNN on any backbone, SSD300 and StairNet."""
