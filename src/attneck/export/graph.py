"""The graph of a network, by torch.export, and the images it is compared with the network on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from attneck.errors import one_line
from attneck.export.agreement import (
    CANDIDATES,
    Check,
    Function,
    clouds,
    compare,
    compare_objects,
    noise,
    tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from attneck.export.detectors import Graph


@dataclass
class Traced:
    """A network's graph, and what it is compared with."""

    program: ExportedProgram
    example: Tensor
    axes: dict[int, str]
    """The dynamic ones of the images, and their names."""
    outputs: list[str]
    eager: Function
    images: list[Tensor]
    classes: int | None
    """How many logits an image has; None where the results are no logits."""
    bounds: tuple[int, int] | None
    """The least height and width of a dynamic size that the graph says it takes."""

    detects: ClassVar[bool] = False

    def compare(self, exported: Function, of_least_score: Callable[[float], Function]) -> list[Check]:
        """`exported`, what the file computes, with the network; a detector's file takes another threshold."""
        return [compare(images, self.eager, exported) for images in self.images]

    def smallest(self, exported: Function) -> tuple[int, int] | None:
        """The least height and width of a dynamic size at which they agree, or a little more.

        `bounds` may be too small: a graph has conditions beside them, such as that a map has more than one
        row. So it is tried, with both sides and with each.
        """
        batch, channels, height, width = self.images[0].shape
        least = self.bounds
        while least is not None and least != (height, width):
            try:
                for sides in (least, (least[0], width), (height, least[1])):
                    compare(noise((batch, channels, *sides)), self.eager, exported)
                break
            except Exception:  # of the network itself, of a condition, or they disagree
                least = min(2 * least[0], height), min(2 * least[1], width)
        return least


@dataclass
class TracedDetector(Traced):
    """One whose results are as many as the objects found."""

    graph: Graph
    thresholds: Any
    """What has the detector's `score_thresh`."""
    detects: ClassVar[bool] = True

    def compare(self, exported: Function, of_least_score: Callable[[float], Function]) -> list[Check]:
        """Both with a threshold that leaves the same number of boxes whatever the detector is sure of."""
        import torch

        own = self.thresholds.score_thresh
        best = [self.graph.class_scores(image).flatten() for image in self.images]
        lasts = torch.stack([each.topk(min(CANDIDATES, len(each))).values[-1] for each in best])
        # What is surer is found, and an untrained detector may be as sure of all: so the next number below.
        least = float(lasts.min().nextafter(lasts.new_tensor(-1)))
        exported = of_least_score(least)
        self.thresholds.score_thresh = least
        try:
            return [
                compare_objects(image, self.eager, exported, self.graph.candidates(image))
                for image in self.images
            ]
        finally:
            self.thresholds.score_thresh = own

    def smallest(self, exported: Function) -> tuple[int, int] | None:
        """`bounds`, since the graph resizes its image itself."""
        return self.bounds


def trace(network: nn.Module, shape: tuple[int, int, int, int], dynamic: Collection[str]) -> Traced:
    """The graph of a network from images to tensors."""
    from torch import Tensor

    batch, channels, height, width = shape
    if "size" in dynamic:
        _check_padding(network)
    # Dynamic axes are traced at lengths that torch.export does not specialise on: not 1, not the model's
    # own, not equal.
    longer = 32 * ("size" in dynamic)
    example = noise((max(batch, 1 + ("batch" in dynamic)), channels, height + longer, width + 2 * longer))
    eager: Function = lambda images: tensors(network(images))  # noqa: E731
    try:
        found: Any = network(noise(shape))
    except Exception as error:  # the network's own, of any kind
        raise ValueError(
            f"this {type(network).__name__} does not take images {[*shape]} ({type(error).__name__}: "
            f"{one_line(error, 150)}): give the image_size and in_chans that it takes"
        ) from error
    if not all(isinstance(one, Tensor) for one in tensors(found)):
        raise ValueError(
            f"this {type(network).__name__} gives a {type(found).__name__}: wanted a tensor or a list of "
            "tensors; export a module whose forward takes what is wanted out of it, net(x)['out'] say"
        )
    is_one = isinstance(found, Tensor)
    decides = getattr(network, "num_classes", None) != 0  # 0 where the classifier is taken off
    classes = found.shape[1] if is_one and found.ndim == 2 and decides else None
    one = "logits" if decides else "features"
    outputs = [one] if is_one else [f"map_{i}" for i in range(len(found))]
    program = capture(network, example, _axes(dynamic))
    lowest = _lower_bounds(program) if "size" in dynamic else None
    images = [noise(each) for each in _shapes(batch, channels, (height, width), dynamic, lowest)]
    return Traced(program, example, _axes(dynamic), outputs, eager, images, classes, lowest)


def _check_padding(network: nn.Module) -> None:
    """ValueError for more than a few of timm's layers that pad as TensorFlow does, by the map's size.

    Each makes the next map's size a longer formula, and torch.export's time multiplies with each.
    """
    names = [
        name
        for name, layer in network.named_modules()
        if type(layer).__name__.endswith("Same") and getattr(layer, "same_pad", True)
    ]
    if len(names) > 3:
        raise ValueError(
            f"{len(names)} layers, {names[0]} the first, pad by the size of their map as TensorFlow does, "
            "and torch.export takes too long with them and an open size: leave size out of dynamic, and "
            "export a file for each size"
        )


def trace_detector(detector: Any, size: tuple[int, int]) -> TracedDetector:
    """The graph of a detector, for one image of any size."""
    from attneck.export.detectors import as_graph

    graph, axes = as_graph(detector).eval(), _axes(["size"])
    height, width = size
    images = [clouds((1, 3, *sides)) for sides in (size, (height * 3 // 4 + 1, width + width // 4))]
    example = clouds((1, 3, height + 32, width + 64))

    def eager(image: Tensor) -> list[Tensor]:
        found = detector([image[0]])[0]
        return [found[name] for name in graph.outputs]

    program = capture(graph, example, axes)
    return TracedDetector(
        program=program,
        example=example,
        axes=axes,
        outputs=list(graph.outputs),
        eager=eager,
        images=images,
        classes=None,
        bounds=_lower_bounds(program),
        graph=graph,
        thresholds=getattr(detector, "roi_heads", detector),
    )


def _axes(dynamic: Collection[str]) -> dict[int, str]:
    """The dynamic axes of the images, and their names."""
    axes = {0: "batch"} if "batch" in dynamic else {}
    return axes | ({2: "height", 3: "width"} if "size" in dynamic else {})


def capture(network: nn.Module, example: Tensor, axes: dict[int, str]) -> ExportedProgram:
    """The network's graph of aten operators."""
    import torch
    from torch.export import Dim

    dynamic = dict.fromkeys(axes, Dim.DYNAMIC)
    try:
        with without_their_warnings():
            return torch.export.export(network, (example,), dynamic_shapes=(dynamic,) if axes else None)
    except (RuntimeError, ValueError) as error:
        how = f" with a dynamic {' and '.join(axes.values())}" if axes else ""
        raise ValueError(f"torch.export does not take this network{how}: {one_line(error)}") from error


@contextmanager
def without_their_warnings() -> Iterator[None]:
    """Inside it torchvision's calls of what torch has deprecated are not warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision")
        yield


def _lower_bounds(program: ExportedProgram) -> tuple[int, int]:
    """The least height and width that the graph says it takes."""
    (name,) = program.graph_signature.user_inputs
    (images,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    height, width = (int(program.range_constraints[side.node.expr].lower) for side in images.shape[2:])
    return height, width


def _shapes(
    batch: int,
    channels: int,
    size: tuple[int, int],
    dynamic: Collection[str],
    smallest: tuple[int, int] | None,
) -> list[tuple[int, int, int, int]]:
    """Input shapes to compare at: the one asked for, and if something is dynamic, others."""
    batches, sizes = [batch], [size]
    if "batch" in dynamic:
        batches = [batch, batch + 2]
    if smallest is not None:
        height, width = (max(sides) for sides in zip(size, smallest, strict=True))
        sizes = [(height, width), (height + 32, width + 64), (height + 17, width + 1)]
    count = max(len(batches), len(sizes))
    return [(batches[i % len(batches)], channels, *sizes[i % len(sizes)]) for i in range(count)]
