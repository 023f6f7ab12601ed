"""Detectors, usable as torchvision's: Mask and Faster R-CNN on any backbone, SSD300 and StairNet."""

from attneck.detection.fpn import FPN
from attneck.detection.rcnn import RCNN, faster_rcnn, mask_rcnn
from attneck.detection.weights import load_weights

__all__ = ["FPN", "RCNN", "faster_rcnn", "load_weights", "mask_rcnn"]
