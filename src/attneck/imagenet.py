"""ImageNet's mean and standard deviation, by channel, in [0, 1]: what timm and torchvision normalise with.

They are timm's `IMAGENET_DEFAULT_MEAN` and `_STD`, written out because timm takes seconds to import.
"""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
