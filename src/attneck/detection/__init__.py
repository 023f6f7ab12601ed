"""Detectors, usable as torchvision's: SSD300 and StairNet (BAM Table 4b)."""
