"""A model on the page: how the server, and a file for itself, run it on an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from attneck.explain import maps
from attneck.layers import BAM, MHSA2d
from attneck.serve.looks import Look, classes_of, objects_of

if TYPE_CHECKING:
    from PIL import Image

    from attneck.explain import Maps
    from attneck.explain.photo import Window


class Viewer(Protocol):
    """A network, and how a photo becomes what it takes, as `attneck.commands.given_model` has it."""

    @property
    def title(self) -> str: ...

    @property
    def trained(self) -> bool: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def detects(self) -> bool: ...

    def prepared(self, photo: Image.Image) -> Tensor: ...

    def window(self, photo: tuple[int, int], found: Maps | None) -> Window: ...


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
        """Run it on an image of any size. A network without our layers has predictions alone."""
        viewer, size = self.viewer, image.size
        pixels = viewer.prepared(image)  # [3, H, W]
        found = None
        if any(isinstance(layer, BAM | MHSA2d) for layer in viewer.network.modules()):
            found = maps(viewer.network, pixels)
            output = found.output
        else:
            with torch.no_grad():
                output = viewer.network([pixels] if viewer.detects else pixels[None])[0]
        left, top, right, bottom = viewer.window(size, found).box
        box = (left / size[0], top / size[1], (right - left) / size[0], (bottom - top) / size[1])
        names = viewer.facts["classes"]
        if viewer.detects:
            return Look(found, box, objects_of(output, names, size), finds_objects=True)
        return Look(found, box, classes_of(output, names), finds_objects=False)
