"""Small pictures as text, for pages of one file: an image, and a map in colours that lies over one."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.explain.palette import HEAT

OURS = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


def data_uri(image: Image.Image) -> str:
    """The image as PNG or as JPEG, whichever takes less, in a data: URI."""
    kinds: dict[str, dict[str, Any]] = {"png": {"optimize": True}, "jpeg": {"quality": 85}}
    found = []
    for kind, options in kinds.items():
        if kind == "jpeg" and image.mode != "RGB":
            continue
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append((kind, file.getvalue()))
    kind, data = min(found, key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def of_bytes(png: bytes) -> str:
    """A PNG file in a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def checked(uri: str) -> str:
    """A data: URI that was read from a file.

    Raises ValueError for what `data_uri` does not write.
    """
    if not OURS.fullmatch(uri):
        raise ValueError("no picture of a report's")
    return uri


def heat(values: NDArray[np.float32], low: float, high: float) -> str:
    """A map [H, W] as a PNG of a pixel a place, in the colours HEAT from `low` to `high`."""
    shares = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    picture = Image.fromarray(np.rint(255 * shares).astype(np.uint8), "L").convert("P")
    picture.putpalette(_colours())
    return data_uri(picture)


def scale() -> str:
    """The colours of `heat` from left to right."""
    return heat(np.arange(64, dtype=np.float32)[None], 0, 63)


@cache
def _colours() -> bytes:
    from matplotlib import colormaps

    return bytes(np.rint(255 * colormaps[HEAT](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
