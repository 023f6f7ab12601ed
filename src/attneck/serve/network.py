"""A model on the page: loaded once, and given images as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attneck.data.readers.folder import resize_and_centre
from attneck.errors import UserError, user_mistakes
from attneck.imagenet import MEAN, STD
from attneck.serve.looks import Look, look

if TYPE_CHECKING:
    from PIL import Image


class Network:
    """A classifier or a detector, in evaluation mode on the CPU; its `pretrained_cfg` says what it takes.

    Raises UserError for a network that takes no square images of three channels.
    """

    def __init__(self, model: nn.Module, name: str, note: str = "") -> None:
        self.model, self.name, self.note = model.eval(), name, note
        known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
        self.classes: Sequence[str] = known.get("label_names") or ()
        self.detects = hasattr(model, "roi_heads") or hasattr(model, "transform")
        self.mean, self.std = known.get("mean", MEAN), known.get("std", STD)
        self.crop_pct: float = known.get("crop_pct") or 1.0
        channels, *sides = known.get("input_size") or (3, 224, 224)
        if not self.detects and (channels != 3 or len({*sides}) != 1):
            raise UserError(f"{name} takes images of {channels} x {' x '.join(map(str, sides))}: the page gives squares in colour")
        self.side: int = sides[0]

    @classmethod
    def load(cls, given: str, kind: Literal["run", "saved", "name"], checkpoint: Literal["newest", "best"]) -> Network:
        """The run, the file or the catalog's model that `given` names."""
        if kind == "run":
            from attneck.runs.run import Run

            run = Run(given, checkpoint)
            note = f"{run.recipe.model.name}, {checkpoint} checkpoint, step {run.step:,}"
            return cls(run.model(), Path(given).resolve().name, note)
        if kind == "saved":
            from attneck import hub

            with user_mistakes():
                return cls(hub.load(given), Path(given).name)
        from attneck.models import create_model

        with user_mistakes():
            return cls(create_model(given), given, "untrained: its weights are random")

    def told(self) -> dict[str, Any]:
        """Its name, and a note."""
        return {"name": self.name, "note": self.note}

    def pixels(self, image: Image.Image) -> Tensor:
        """An image of any size as the model takes it: [3, H, W]."""
        if self.detects:
            return _pixels(image)
        mean, std = (torch.tensor(of_three)[:, None, None] for of_three in (self.mean, self.std))
        return (_pixels(resize_and_centre(image, self.side, self.crop_pct)) - mean) / std

    def see(self, image: Image.Image) -> Look:
        """Run it on an image of any size."""
        box = None if self.detects else centre(image.size, self.side, self.crop_pct)
        return look(self.model, self.pixels(image), box, self.classes)


def centre(size: tuple[int, int], side: int, crop_pct: float) -> list[float]:
    """Where `resize_and_centre` cuts an image of `size` (width, height): left, top, width, height, as shares."""
    scale = round(side / crop_pct) / min(size)
    width, height = (max(side, round(edge * scale)) for edge in size)
    return [(width - side) // 2 / width, (height - side) // 2 / height, side / width, side / height]


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W], from 0 to 1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255
