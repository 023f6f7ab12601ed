"""Photographs of noise, as class folders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(
    root: Path, counts: Mapping[str, int], classes: tuple[str, ...], side: int, end: str
) -> None:
    """In ROOT/SPLIT/CLASS/ as many as `counts` says of the split, CLASS_0.END … of side × side pixels."""
    draw = np.random.default_rng(0)
    for split, count in counts.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{number}.{end}")
