"""A model that is given photos: what it takes of one, and how the page's server, and a file, run it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attneck.detection.finite import finite
from attneck.explain import maps
from attneck.explain.photo import Window, centred, fitted
from attneck.layers import BAM, MHSA2d
from attneck.serve.looks import Look, classes_of, objects_of
from attneck.tasks.classification import Classification
from attneck.tasks.detection import Detection

if TYPE_CHECKING:
    from PIL import Image

    from attneck.explain import Maps
    from attneck.tasks.task import Found


@dataclass(frozen=True)
class Viewer:
    """A network, and how a photo becomes what it takes.

    Attributes:
        title: what to call it in a picture.
        trained: whether it has weights from anywhere.
        facts: of a classifier `classes` (empty where they have no names), `image_size`, `mean`, `std`,
            `crop_pct` and, where it isn't bilinear, `interpolation`; of a detector `classes`, the background
            not counted, `category_ids` and `image_size`.
        detects: whether it finds objects.
    """

    title: str
    trained: bool
    network: nn.Module
    facts: dict[str, Any]
    detects: bool

    def prepared(self, photo: Image.Image) -> Tensor:
        """[3, H, W]"""
        return (Detection if self.detects else Classification).prepared(photo, self.facts)

    def found(self, photo: Image.Image, min_score: float, top_k: int | None = None) -> Found:
        """What is in a photo, as `attneck.tasks.task.Task.predict` says it."""
        if self.detects:
            return Detection.predict(self.network, photo, self.facts, min_score)
        return Classification.predict(self.network, photo, self.facts, min_score, top_k or 5)

    def checked(self) -> AbstractContextManager[None]:
        """Raises NotFinite where a detector's heads, run within, say what is not finite; logits are checked
        where classes are made of them."""
        return finite(self.network) if self.detects else nullcontext()

    def window(self, photo: tuple[int, int], found: Maps | None) -> Window:
        """What the network sees of a photo of (width, height), and where its maps lie, if it has any."""
        if not self.detects:
            return centred(photo, self.facts["image_size"], self.facts["crop_pct"])
        if found is None:
            return Window(photo, (0.0, 0.0, float(photo[0]), float(photo[1])))
        return fitted(photo, found.seen, found.image_size)


class Network:
    """A viewer by the name that the page gives it."""

    def __init__(self, viewer: Viewer, name: str) -> None:
        self.viewer, self.name = viewer, name

    def told(self) -> dict[str, Any]:
        """Its name, and a note."""
        title = "" if self.viewer.title == self.name else self.viewer.title
        return {
            "name": self.name,
            "note": title if self.viewer.trained else "untrained: its weights are random",
        }

    def see(self, image: Image.Image) -> Look:
        """Run it on an image of any size. A network without our layers has predictions alone.

        Raises NotFinite where what it says is not.
        """
        viewer, size = self.viewer, image.size
        pixels = viewer.prepared(image)  # [3, H, W]
        found = None
        with viewer.checked():
            if any(isinstance(layer, BAM | MHSA2d) for layer in viewer.network.modules()):
                found = maps(viewer.network, pixels)
                output = found.output
            else:
                with torch.no_grad():
                    output = viewer.network([pixels] if viewer.detects else pixels[None])[0]
        window = viewer.window(size, found)
        names = viewer.facts["classes"]
        if viewer.detects:
            return Look(found, window, objects_of(output, names, size), finds_objects=True)
        return Look(found, window, classes_of(output, names), finds_objects=False)
