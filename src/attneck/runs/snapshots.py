"""What a model says of a few held-out images, and what it looks at in them, as it is trained.

A run keeps few checkpoints, so a small file is written at a few of its records, and one before its first
step. A file depends on the weights and on the images alone: a run that is resumed writes those again that it
comes to again, with the same bytes, and no random state is used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attneck.errors import one_line, say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attneck.explain import Maps
    from attneck.tasks.task import Facts, Sample, Task

FOLDER = "snapshots"
IMAGES = 4
"""Held-out images, evenly spread, the same ones each time."""
MOMENTS = 7
"""Records at which a snapshot is taken, at most, beside the one before the first step."""
LAYERS = 4
"""Of each kind, evenly spread."""
LONGEST, SIDE = 160, 32
"""Pixels of a picture's longer side, and places of a map's, at most."""
GRID = 8
"""Attention is shown from the part of the image that differs most from the rest, of GRID x GRID parts."""
SURE = 0.5
"""The score from which on a detector's object is named."""


@dataclass(frozen=True)
class Layer:
    """What one layer looks at.

    Attributes:
        kind: "BAM", M of eq. 2, the mean over its channels; or "MHSA", the weights of the query at the
            image's place, the mean over its heads.
        values: float32 [H, W].
        places: of MHSA over how many places its weights are spread, exp(entropy), the mean over its heads.
        size: (H, W) of the layer's own map; of a padded one of what lies on the image, which `values` and
            `places` are of, too.
    """

    name: str
    kind: str
    values: NDArray[np.float32]
    places: float | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Look:
    """One image as the model sees it.

    Attributes:
        picture: as a data: URI.
        size: (width, height) of the picture.
        place: x and y from which attention is shown, as shares of the picture.
        truth: what is in it, in words.
        said: what the model says, best first, each with its score.
    """

    picture: str
    size: tuple[int, int]
    place: tuple[float, float]
    truth: str
    said: list[tuple[str, float]]
    layers: list[Layer]


@dataclass(frozen=True)
class Snapshot:
    """All images after so many steps."""

    step: int
    looks: list[Look]


class Snapshots:
    """Takes them of a run, into its folder.

    Nothing that goes wrong here ends the run: it is a line on stderr, and no more are taken.
    """

    def __init__(self, folder: Path, task: Task, facts: Facts) -> None:
        self.folder, self.task, self.facts = folder / FOLDER, task, facts
        per_epoch = len(task.training) // task.recipe.batch
        self.steps = moments(task.recipe.total_steps(per_epoch), task.recipe.eval_epochs * per_epoch)

    def __call__(self, step: int, network: nn.Module) -> None:
        """After `step`: a snapshot, if one is due. The network is in evaluation mode."""
        if step in self.steps:
            self.take(step, network)

    def last(self, step: int) -> bool:
        """Whether the run's end has to be taken yet: it came early, or none were taken before."""
        return bool(self.steps) and not self._file(step).exists()

    def take(self, step: int, network: nn.Module) -> None:
        """A snapshot; none of a detector without attention, whose objects are in the run's pictures."""
        from attneck.files import write_atomic, writing
        from attneck.layers import BAM, MHSA2d

        attends = any(isinstance(layer, BAM | MHSA2d) for layer in network.modules())
        if self.task.finds_objects and not attends:
            return
        try:
            samples = self.task.samples(min(IMAGES, len(self.task.held_out)))
            looks = [self._look(network, sample, attends) for sample in samples]
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
            write_atomic(self._file(step), json.dumps([_told(look) for look in looks]).encode())
        except Exception as error:
            self.steps = frozenset()
            say(
                f"{self.folder}: no more snapshots are taken ({type(error).__name__}: "
                f"{one_line(error, 150)}); the run goes on"
            )

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.json"

    def _look(self, network: nn.Module, sample: Sample, attends: bool) -> Look:
        import torch
        from PIL import Image

        from attneck.explain.inline import data_uri

        pixels = self.task.prepared(sample.image, self.facts)  # [3, H, W]
        device = next(network.parameters()).device
        if attends:
            from attneck.explain import maps

            found = maps(network, pixels.to(device))
            output = found.output
        else:
            found, output = None, network(pixels[None].to(device))[0]
        shown = pixels
        if not self.task.finds_objects:
            mean, std = (torch.tensor(self.facts[key])[:, None, None] for key in ("mean", "std"))
            shown = pixels * std + mean
        place = distinct(shown)
        bytes_ = (255 * shown).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()  # [H, W, 3]
        picture = Image.fromarray(bytes_)
        picture.thumbnail((LONGEST, LONGEST))
        return Look(
            data_uri(picture),
            picture.size,
            place,
            _truth(sample),
            self._said(output),
            [] if found is None else layers(found, place),
        )

    def _said(self, output: Any) -> list[tuple[str, float]]:
        """The two likeliest classes; of a detector the surest objects, of SURE or more."""
        classes = self.facts["classes"]
        if not self.task.finds_objects:
            from attneck.tasks.classification import likeliest

            return [(name, round(share, 4)) for name, share in likeliest(output, classes, 2)]
        shares, order = output["scores"].sort(descending=True)
        shares = shares[shares >= SURE][:3]
        names = [classes[label - 1] for label in output["labels"][order[: len(shares)]].tolist()]
        return [(name, round(share, 4)) for name, share in zip(names, shares.tolist(), strict=True)]


def moments(steps: int, period: int) -> Collection[int]:
    """The steps of a run's records after which a snapshot is taken, and 0: closer together at first."""
    records = -(-steps // period)
    if records <= MOMENTS:
        chosen = {*range(1, records + 1)}
    else:
        chosen = {max(1, round(records * (k / MOMENTS) ** 2)) for k in range(1, MOMENTS + 1)}
    return frozenset({0} | {min(record * period, steps) for record in chosen})


def distinct(image: Tensor) -> tuple[float, float]:
    """x and y of the part of an image [3, H, W] that differs most from its mean colour, as shares of it."""
    from torch.nn.functional import adaptive_avg_pool2d

    apart = (image - image.mean((1, 2), keepdim=True)).abs().sum(0, keepdim=True)  # [1, H, W]
    y, x = divmod(int(adaptive_avg_pool2d(apart, GRID).argmax()), GRID)
    return (x + 0.5) / GRID, (y + 0.5) / GRID


def layers(found: Maps, place: tuple[float, float]) -> list[Layer]:
    """Some of the layers that saw an image, each kind in the order in which they ran."""
    chosen = []
    for kind in (found.bams, found.mhsas):
        once = [layer for layer in kind if layer.call == 1]
        for index in np.unique(np.linspace(0, len(once) - 1, min(len(once), LAYERS)).round().astype(int)):
            chosen.append(_layer(once[index], found, place))
    return chosen


def _layer(layer: Any, found: Maps, place: tuple[float, float]) -> Layer:
    H, W = layer.map_size
    # A detector's batch is padded: of the map what lies on the image.
    h, w = (
        max(1, round(side * one / all_))
        for side, one, all_ in zip((H, W), found.seen, found.image_size, strict=True)
    )
    if hasattr(layer, "attention"):
        return Layer(layer.name, "BAM", _small(layer.attention.float().mean(0)[:h, :w]), None, (h, w))
    row = layer.row(int(place[1] * h), int(place[0] * w))[:, :h, :w].float()  # [heads, h, w]
    share = row / row.sum((1, 2), keepdim=True).clamp_min(1e-30)  # of what it looks at on the image
    entropy = -(share * share.clamp_min(1e-30).log()).sum((1, 2))  # [heads]
    return Layer(layer.name, "MHSA", _small(row.mean(0)), float(entropy.exp().mean()), (h, w))


def _small(values: Tensor) -> NDArray[np.float32]:
    """A map of at most SIDE x SIDE places: of a larger one the means."""
    from torch.nn.functional import adaptive_avg_pool2d

    H, W = values.shape
    small = adaptive_avg_pool2d(values[None], (min(H, SIDE), min(W, SIDE)))[0]
    found: NDArray[np.float32] = small.cpu().numpy().astype(np.float32)
    return found


def _truth(sample: Sample) -> str:
    names = [str(row["category"]) for row in sample.truth or []]
    return names[0] if len(names) == 1 else f"{len(names)} objects"


def _told(look: Look) -> dict[str, Any]:
    """As JSON has it; the values of a map as 16-bit numbers."""
    told = asdict(look)
    for layer, row in zip(look.layers, told["layers"], strict=True):
        row["shape"] = list(layer.values.shape)
        row["values"] = base64.b64encode(layer.values.astype("<f2").tobytes()).decode()
    return told


def read(folder: Path, steps: Collection[int]) -> list[Snapshot]:
    """A run's snapshots, of those steps, in their order; what is no snapshot is left out."""
    found = []
    for step in sorted(steps):
        try:
            rows = json.loads((folder / FOLDER / f"step-{step:08}.json").read_bytes())
            found.append(Snapshot(step, [_look_of(row) for row in rows]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _look_of(row: dict[str, Any]) -> Look:
    from attneck.explain.inline import checked

    return Look(
        checked(row["picture"]),
        (int(row["size"][0]), int(row["size"][1])),
        (float(row["place"][0]), float(row["place"][1])),
        str(row["truth"]),
        [(str(name), float(score)) for name, score in row["said"]],
        [
            Layer(
                str(one["name"]),
                str(one["kind"]),
                np.frombuffer(base64.b64decode(one["values"]), "<f2")
                .astype(np.float32)
                .reshape(one["shape"]),
                None if one["places"] is None else float(one["places"]),
                (int(one["size"][0]), int(one["size"][1])),
            )
            for one in row["layers"]
        ],
    )
