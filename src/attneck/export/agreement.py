"""Compares an exported graph with its network, on the same images; nothing that differs is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from attneck.errors import OVERFLOW, NotFinite

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
"""Greatest difference between a file's results and the network's, relative to the largest value."""
SMALL = 1e-2
"""Of a network whose results are smaller than this, it is relative to it: sums that cancel have rounding's
differences."""

FLIPPED = 0.1
"""Share of the objects found that may have no counterpart: where scores or overlaps are equal but for
rounding, a choice between them falls otherwise, and others with it. A wrong graph loses nearly all."""

CANDIDATES = 500
"""Boxes that a detector's choice is compared on: on noise its own threshold leaves none, or far too many."""

Function = Callable[["Tensor"], "list[Tensor]"]


class Candidates(NamedTuple):
    """What a detector chooses its objects among: boxes [m, 4], labels [m], scores [m].

    Of two of a class that overlap by more than `overlap` (IoU), it takes the surer one; of all the surest
    `most`.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    overlap: float
    most: int


class DisagreementError(RuntimeError):
    """The exported graph does not compute what the network does; nothing was written."""


@dataclass(frozen=True)
class Check:
    """The largest difference from the network on one batch, and its ratio to the largest value there.

    Of a detector: the number of objects that were found in the image, and of those without a counterpart.
    """

    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    objects: int | None = None
    unmatched: int | None = None


def noise(shape: tuple[int, ...]) -> Tensor:
    """The same each time, of mean 0 and deviation 1."""
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def clouds(shape: tuple[int, ...]) -> Tensor:
    """The same each time, smooth over 4 pixels, between 0 and 1."""
    from torch.nn import functional as F

    B, C, H, W = shape
    coarse = noise((B, C, 1 + H // 4, 1 + W // 4)).mul(0.25).add(0.5).clamp(0, 1)
    return F.interpolate(coarse, size=(H, W), mode="bilinear")


def tensors(results: Any) -> list[Tensor]:
    """What a network or a graph gives, as a list."""
    return list(results) if isinstance(results, (list, tuple)) else [results]


def compare(images: Tensor, network: Function, exported: Function) -> Check:
    """The difference of both, tensor by tensor.

    Raises NotFinite for a network whose own results are not, and DisagreementError for a graph that is off.
    """
    shape, largest, relative = tuple(images.shape), 0.0, 0.0
    for want, got in zip(network(images), exported(images), strict=True):
        if not want.isfinite().all():
            raise NotFinite(f"the network's own results on noise are not finite: {OVERFLOW}")
        fits, scale = got.shape == want.shape, float(want.abs().max())
        difference = float((got - want).abs().max()) if fits else float("inf")
        if not difference <= TOLERANCE * max(SMALL, scale):  # NaN is refused too
            raise DisagreementError(
                f"on images {list(shape)} the exported graph is {difference:.1e} off, with values up to "
                f"{scale:.1e}: more than {TOLERANCE}; nothing was written"
            )
        largest, relative = max(largest, difference), max(relative, difference / scale if scale else 0.0)
    return Check(shape, largest, relative)


def compare_objects(
    image: Tensor, network: Function, exported: Function, candidates: Candidates | None = None
) -> Check:
    """Each object that one finds and the other one's of the same class, box, score and mask.

    Both give boxes [n, 4], labels [n], scores [n], and masks [n, 1, H, W] if any. Differences are relative to
    the image's sides in boxes, and to 1 in scores and masks.

    A network that was hardly trained has the same score for many boxes. Where too few objects have a
    counterpart, the choice is tried on `candidates`, those of the network, if they are known.
    """
    import torch

    shape, (wanted, found) = tuple(image.shape), (network(image), exported(image))
    scales = [float(max(shape[2:])), 1.0, 1.0, 1.0]
    # [n, n'] each: the greatest difference of object i and object j, relative to the scale.
    differences = torch.zeros(len(wanted[0]), len(found[0]))
    for want, got, scale in zip(wanted, found, scales, strict=False):
        if want.shape[1:] != got.shape[1:]:
            raise DisagreementError(
                f"on an image {list(shape)} the exported graph gives {list(got.shape)} for "
                f"{list(want.shape)}; nothing was written"
            )
        for i, one in enumerate(want.double()):
            of_one = (got.double() - one).abs().flatten(1).amax(1) if got.ndim > 1 else (got - one).abs()
            differences[i] = differences[i].maximum((of_one / scale).float())
    matched = differences <= TOLERANCE  # NaN matches nothing
    unmatched = int((~matched.any(1)).sum()) + int((~matched.any(0)).sum())
    missing = [want[~matched.any(1)] for want in wanted[:3]]
    if unmatched > 2 * FLIPPED * max(matched.shape) and not (
        candidates is not None and chosen_of(candidates, found, missing, scales[0])
    ):
        raise DisagreementError(
            f"on an image {list(shape)} {unmatched} of the {matched.shape[0]} objects of the network and the "
            f"{matched.shape[1]} of the exported graph have no counterpart; nothing was written"
        )
    relative = float(differences[matched].max()) if matched.any() else 0.0
    return Check(shape, relative * scales[0], relative, matched.shape[0], unmatched)


def chosen_of(candidates: Candidates, found: list[Tensor], missing: list[Tensor], scale: float) -> bool:
    """Whether `found` without `missing` is as good a choice of the candidates, but for equal scores' order.

    Each object is a candidate, no two of a class overlap by too much, and each that is missing overlaps one
    of its class that is as sure, or is among the least sure where there is room for no more. Differences of
    boxes are relative to `scale`.
    """
    from torchvision.ops import box_iou

    boxes, labels, scores = (each.to(candidates.boxes) for each in found[:3])
    for box, label, score in zip(boxes, labels, scores, strict=True):
        near = ((candidates.boxes - box).abs().amax(1) / scale).maximum((candidates.scores - score).abs())
        if not bool(((near <= TOLERANCE) & (candidates.labels == label)).any()):
            return False
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    if bool(((overlaps > candidates.overlap + TOLERANCE) & (labels[:, None] == labels)).any()):
        return False
    there, of_class, sure = (each.to(boxes) for each in missing)
    covered = box_iou(there, boxes) > candidates.overlap - TOLERANCE
    as_sure = (of_class[:, None] == labels) & (sure[:, None] <= scores + TOLERANCE)
    explained = (covered & as_sure).any(1)
    if 0 < len(scores) == candidates.most:
        explained |= sure <= scores.min() + TOLERANCE
    return bool(explained.all())


def race(functions: list[Function], images: Tensor, rounds: int) -> list[float]:
    """Each one's median time in milliseconds; they take turns, and the first round is left out."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = perf_counter()
            function(images)
            seconds.append(perf_counter() - start)
    return [1000 * median(seconds[1:]) for seconds in times]
