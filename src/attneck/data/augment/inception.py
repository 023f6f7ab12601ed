"""ImageNet's training augmentation by torchvision and timm, whose draws come from global generators."""

from collections.abc import Callable
from typing import Any

Transform = Callable[[Any], Any]


def inception(size: int, randaugment_layers: int = 0, randaugment_magnitude: int = 10) -> Transform:
    """A PIL image → one of size × size pixels: a random crop, resized, a flip, and RandAugment's operations.

    The crop has 8 to 100 % of the area at an aspect of 3/4 to 4/3. RandAugment (BoTNet section 4.8) is
    timm's: each layer draws one of its 15 operations and applies it. Magnitudes are on the paper's scale,
    where 10 is 30 degrees of rotation (torchvision's 10 is 10 degrees).

    Raises ValueError for a number of layers under 0 or a magnitude outside 0 … 30.
    """
    from torchvision.transforms import v2  # seconds of imports: only where used

    if randaugment_layers < 0 or not 0 <= randaugment_magnitude <= 30:
        raise ValueError(
            f"randaugment with {randaugment_layers} layers of magnitude {randaugment_magnitude}: "
            f"layers must be 0 or more, the magnitude 0 ... 30"
        )
    steps: list[Transform] = [v2.RandomResizedCrop(size, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()]
    if randaugment_layers:
        from timm.data.auto_augment import rand_augment_transform  # seconds of imports: only where used

        # p1: timm's default applies each drawn operation to every second image only, the paper's always.
        # mmax: timm's cap at 10 lifted, as the paper's 15 and 24 want it.
        form = f"rand-p1-m{randaugment_magnitude}-mmax{randaugment_magnitude}-n{randaugment_layers}"
        steps.append(rand_augment_transform(form, {"img_mean": (128, 128, 128)}))
    compose: Transform = v2.Compose(steps)
    return compose
