"""What a model sees in an image, as the page is told it: JSON, and rows of attention as bytes.

Letters: H x W a map, N = H*W places, h heads, n objects.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attneck.explain import BAMMaps, Maps, MHSAMaps
from attneck.explain.photo import Window
from attneck.explain.scale import ends
from attneck.explain.seeing import Part, gain_of
from attneck.serve.page import STEPS_A_NAT
from attneck.tasks.classification import likeliest
from attneck.tasks.task import class_name

CLASSES, OBJECTS = 5, 50
"""Of an image, at most."""
LEAST = 0.05
"""Of an object's score."""


class Look:
    """One image as one model sees it."""

    def __init__(
        self,
        found: Maps | None,
        window: Window,
        predictions: list[dict[str, Any]],
        *,
        finds_objects: bool,
    ) -> None:
        self.mhsas: tuple[MHSAMaps, ...] = () if found is None else found.mhsas
        (left, top, right, bottom), (width, height) = window.box, window.photo
        self._told = {
            "box": [left / width, top / height, (right - left) / width, (bottom - top) / height],
            "finds_objects": finds_objects,
            "predictions": predictions,
            "mhsas": [_told_mhsa(one) for one in self.mhsas],
            "bams": [] if found is None else [_told_bam(one, window) for one in found.bams],
            "notes": [] if found is None else list(found.notes),
        }

    def told(self) -> dict[str, Any]:
        """What does not change with the place.

        `box` is where the model's input lies in the image: left, top, width and height as shares of the
        image's; the input may be a part of it, or go beyond it where it is padded. Boxes of objects likewise.
        Maps [H, W] are float32 in base64, and `ranges` the ends of their scales; a BAM's attention is the
        mean over its channels.
        """
        return self._told

    def rows(self, cells: Sequence[tuple[int, int]]) -> bytes:
        """The rows of each block from its cell (y, x), see `packed`, one block after the other.

        Raises ValueError for cells that are not there.
        """
        if len(cells) != len(self.mhsas):
            raise ValueError(f"{len(cells)} places were given, and there are {len(self.mhsas)} blocks")
        return b"".join(packed(one, y, x) for one, (y, x) in zip(self.mhsas, cells, strict=True))


def parts(mhsa: MHSAMaps) -> list[Part]:
    """The terms of the block's logits."""
    terms: tuple[tuple[Part, bool], ...] = (("content", mhsa.content), ("position", mhsa.position != "none"))
    return [part for part, there in terms if there]


def packed(mhsa: MHSAMaps, y: int, x: int) -> bytes:
    """The row from (y, x) of each term alone, [h, H, W] each: -log in STEPS_A_NAT, little-endian uint16.

    softmax(a * content + b * position) is these rows to the powers a and b, multiplied and made to sum to
    one, so that the page needs no more of a place for any weights of the two terms.
    """
    rows = [-mhsa.log_row(y, x, part) for part in parts(mhsa)]
    steps = (torch.nan_to_num(torch.stack(rows)) * STEPS_A_NAT).round().clamp(0, 65535)
    return steps.cpu().to(torch.int32).numpy().astype("<u2").tobytes()


def _told_mhsa(mhsa: MHSAMaps) -> dict[str, Any]:
    return {
        "name": _name(mhsa.name, mhsa.call),
        "map": list(mhsa.map_size),
        "heads": mhsa.heads,
        "distance": [round(pixels, 2) for pixels in torch.nan_to_num(mhsa.distance()).tolist()],
        "parts": parts(mhsa),
        "step": 1,
    }


def _told_bam(bam: BAMMaps, window: Window) -> dict[str, Any]:
    arrays = {
        "before": bam.before,
        "after": bam.after,
        "attention": bam.attention.mean(0),
        "spatial": bam.spatial,
        "channel": bam.channel,
    }

    def seen(name: str) -> NDArray[np.floating]:
        values = arrays[name]
        assert values is not None
        return window.shown(torch.nan_to_num(values.float()).cpu().numpy())

    ranges = {"attention": ends("gate"), "before": ends("magnitude", seen("before"), seen("after"))}
    ranges["after"] = ranges["before"]
    if bam.spatial is not None:
        ranges["spatial"] = ends("logit", seen("spatial"))
    if bam.channel is not None:
        ranges["channel"] = ends("logit", torch.nan_to_num(bam.channel.float()).cpu().numpy())
    return {
        "name": _name(bam.name, bam.call),
        "map": list(bam.map_size),
        "gain": gain_of(bam),
        "ranges": ranges,
        **{name: None if array is None else _floats(array) for name, array in arrays.items()},
    }


def _name(name: str, call: int) -> str:
    return name if call == 1 else f"{name} ({call})"


def _floats(array: Tensor) -> str:
    finite = torch.nan_to_num(array.float())
    return _text(finite.cpu().contiguous().numpy().astype("<f4").tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def classes_of(logits: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest; logits [classes]. Raises NotFinite for logits that are not."""
    found = likeliest(logits, classes, CLASSES)
    return [{"category": name, "score": score} for name, score in found]


def objects_of(
    found: dict[str, Tensor], classes: Sequence[str], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The surest, best first; boxes as shares of the image, of `size` (width, height), and masks in boxes of
    whole pixels around them."""
    order = found["scores"].argsort(descending=True)[:OBJECTS]
    order = order[found["scores"][order] >= LEAST]
    sides = torch.tensor([*size, *size])

    def box(left: float, top: float, right: float, bottom: float) -> list[float]:
        shares: list[float] = (torch.tensor([left, top, right - left, bottom - top]) / sides).tolist()
        return shares

    rows = []
    for index in order.tolist():
        left, top, right, bottom = found["boxes"][index].tolist()
        row: dict[str, Any] = {
            "category": class_name(classes, int(found["labels"][index]) - 1),
            "score": float(found["scores"][index]),
            "box": box(left, top, right, bottom),
        }
        if "masks" in found:
            x, y = int(max(0, left)), int(max(0, top))
            bits = (found["masks"][index, 0, y : int(bottom) + 1, x : int(right) + 1] >= 0.5).cpu().numpy()
            row["mask"] = {
                "box": box(x, y, x + bits.shape[1], y + bits.shape[0]),
                "width": bits.shape[1],
                "height": bits.shape[0],
                "bits": _text(np.packbits(bits).tobytes()),
            }
        rows.append(row)
    return rows
