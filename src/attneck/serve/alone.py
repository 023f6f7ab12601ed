"""The page without a server: one HTML file with its image and all numbers inside, for anybody to open."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attneck.explain import MHSAMaps
from attneck.serve.gallery import jpeg
from attneck.serve.looks import packed, parts
from attneck.serve.page import document

if TYPE_CHECKING:
    from PIL import Image

    from attneck.serve.network import Network

MOST_BYTES = 12_000_000
"""Of all rows in a file. Where a row for each place would be more, there is one for each second."""

PHOTO = (2048, 2048)
"""(width, height) in pixels of the photo in a file, at most."""


def alone(image: Image.Image, name: str, networks: Sequence[Network]) -> str:
    """The file: what each network sees in the image, and the page that shows it.

    Args:
        name: the image's, as the page says it.
    """
    seen = [network.see(image) for network in networks]
    blocks = sum(len(look.mhsas) for look in seen)
    looks = []
    for look in seen:
        mhsas = []
        for mhsa, told in zip(look.mhsas, look.told()["mhsas"], strict=True):
            step = coarseness(mhsa, MOST_BYTES // blocks)
            H, W = mhsa.map_size
            rows = b"".join(packed(mhsa, y, x) for y in range(0, H, step) for x in range(0, W, step))
            mhsas.append(told | {"step": step, "rows": base64.b64encode(rows).decode()})
        looks.append(look.told() | {"mhsas": mhsas})
    small = image.copy()
    small.thumbnail(PHOTO)
    photo = "data:image/jpeg;base64," + base64.b64encode(jpeg(small)).decode()
    shown = {"name": name, "width": small.width, "height": small.height, "url": photo}
    models = [network.told() for network in networks]
    return document({"live": False, "models": models, "image": shown, "looks": looks}, alone=True)[0]


def coarseness(mhsa: MHSAMaps, most: int) -> int:
    """Rows from every how manyth place fit into `most` bytes, in both directions; from one at least."""
    H, W = mhsa.map_size
    row = 2 * len(parts(mhsa)) * mhsa.heads * H * W
    return next(
        (step for step in range(1, max(H, W)) if -(-H // step) * -(-W // step) * row <= most), max(H, W)
    )
