"""Exports a network as ONNX, or as PyTorch's exported program (.pt2).

Both graphs have standard operators only (a detector's program those of torchvision too). Before a file is
written, its results are compared with the network's, at the one input shape or at several. It says what its
results mean, and what images it wants (`metadata`), and ends with a SHA-256 of all before it (`seal`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.checks import sides, whole
from attneck.errors import NotFinite, is_out_of_memory, one_line
from attneck.export.agreement import Check, DisagreementError, race
from attneck.export.formats import INPUT, check_convertible, runner, to_onnx, to_pt2
from attneck.export.graph import trace, trace_detector
from attneck.files import write_atomic
from attneck.models.origin import Origin, bare, is_detector
from attneck.seal import seal, verify

if TYPE_CHECKING:
    from torch import nn

    from attneck.runs.run import Run

__all__ = [
    "INPUT",
    "Check",
    "DisagreementError",
    "Exported",
    "check_request",
    "check_writable",
    "export",
    "verify",
]

FORMATS = (".onnx", ".pt2")
OPSETS = (18, 20, 23)
DYNAMIC = ("batch", "size")
"""What may be dynamic in a graph: the number of images, and their height and width."""

ROUNDS, DETECTOR_ROUNDS = 5, 1
"""Timed rounds: network and file take turns, and the medians are shown."""


@dataclass(frozen=True)
class Exported:
    """What was written. Times are in milliseconds a batch, of the first check's shape."""

    file: Path
    format: str
    opset: int | None
    input: tuple[int | str, ...]
    smallest: tuple[int, int] | None
    """The least height and width of a dynamic size."""
    bytes: int
    checks: list[Check]
    eager_ms: float
    exported_ms: float
    threads: int


def export(
    model: nn.Module | Run,
    file: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    batch: int = 1,
    dynamic: Collection[str] = (),
    opset: int | None = None,
    notes: Mapping[str, str] | None = None,
) -> Exported:
    """Write `model`, in evaluation mode and float32, as `file`: .onnx or .pt2.

    A classifier's graph makes `logits` [B, classes] of `image` [B, C, H, W], which the caller has resized and
    normalised as the file says. A detector's makes `boxes` [n, 4], `labels` [n], `scores` [n] and, of Mask
    R-CNN, `masks` [n, 1, H, W] of one `image` [1, 3, H, W] with values from 0 to 1, of any size.

    Args:
        model: any network from images [B, C, H, W] to a tensor or a list of tensors, a detector of this
            project, or a run; it is not changed.
        image_size: side or (height, width) in pixels; if not given, that of `create_model` or of timm's
            `pretrained_cfg`.
        in_chans: C; likewise.
        batch: B, unless that is dynamic; of a detector 1.
        dynamic: "batch", "size" or both; a detector's graph leaves the size open by itself.
        opset: of ONNX, 18 if not given; a file with another is never written.
        notes: more for the file's metadata; of a run its recipe's name is there.

    Raises:
        ValueError: what `check_request` refuses; a quantized network; one that torch.export does not take, or
            not with these axes dynamic, that does not take every size where that is one of them, or whose
            result is no tensor and no list of them.
        DisagreementError: the file's results differ by more than rounding.
        NotFinite: the network's own results are not.
        OSError: the file could not be written.
        UserError: a run without a checkpoint that is whole.
    """
    import torch

    from attneck.export.metadata import metadata
    from attneck.layers import MHSA2d

    file = Path(file)
    check_request(file, dynamic, opset)
    model, notes = _network(model, image_size, notes or {})
    channels, height, width = _input(model, image_size, in_chans)
    whole("batch", batch)
    for name, layer in model.named_modules():
        if type(layer).__module__.startswith("torch.ao.nn.quantized"):
            raise ValueError(
                f"its {name} is quantized, which no graph takes: export the model as it was, and quantize "
                "the file (onnxruntime.quantization does)"
            )
    detects = is_detector(model)
    if detects and (batch != 1 or dynamic):
        raise ValueError("a detector's graph takes one image, of any size: leave batch and dynamic out")
    network: Any = _copy(model).to("cpu", torch.float32).eval()
    for layer in network.modules():
        if isinstance(layer, MHSA2d):
            layer.backend = "auto"  # in a graph PyTorch's own operators; a way by its name would be called
    with torch.no_grad():
        traced = (
            trace_detector(network, (height, width))
            if detects
            else trace(network, (batch, channels, height, width), dynamic)
        )
        about = metadata(model, (height, width), detects, traced.classes) | notes
        opset = (opset or OPSETS[0]) if file.suffix == ".onnx" else None
        if opset is not None:
            check_convertible(traced.program)
        try:
            made = to_pt2(traced.program, about) if opset is None else to_onnx(traced, opset, about)
            data = seal(made, file.suffix)
            exported = runner(data, file.suffix)
            checks = traced.compare(exported, lambda least_score: runner(data, file.suffix, least_score))
        except Exception as error:
            if not dynamic or isinstance(error, DisagreementError | NotFinite) or is_out_of_memory(error):
                raise
            raise ValueError(  # the network's own, at a size that it was not made for, or the exporter's
                f"this {type(model).__name__} is not to be had with a dynamic {' and '.join(dynamic)} "
                f"({type(error).__name__}: {one_line(error, 150)}): leave that out of dynamic, and write a "
                "file for each one that is needed"
            ) from error
        smallest = traced.smallest(exported)
        rounds = DETECTOR_ROUNDS if detects else ROUNDS
        eager_ms, exported_ms = race([traced.eager, exported], traced.images[0], rounds)
    write_atomic(file, data)
    return Exported(
        file=file,
        format=file.suffix[1:],
        opset=opset,
        input=tuple(traced.axes.get(axis, length) for axis, length in enumerate(traced.images[0].shape)),
        smallest=smallest,
        bytes=len(data),
        checks=checks,
        eager_ms=eager_ms,
        exported_ms=exported_ms,
        threads=torch.get_num_threads(),
    )


def _network(
    model: nn.Module | Run, image_size: int | tuple[int, int] | None, notes: Mapping[str, str]
) -> tuple[nn.Module, dict[str, str]]:
    """The network itself, of a run with what the file says of it."""
    from torch import nn

    if isinstance(model, nn.Module):
        return bare(model), dict(notes)
    from attneck.runs.provenance import recipe_name

    name = recipe_name(model.folder)
    return model.model(image_size), ({"recipe": name} if name else {}) | dict(notes)


def _copy(model: nn.Module) -> nn.Module:
    """A copy of it; ValueError where there is none to make."""
    from attneck.layers.bare import copied

    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"this {type(model).__name__} is on the meta device, without weights: load them first"
        )
    return copied(model)


def check_request(file: Path, dynamic: Collection[str] = (), opset: int | None = None) -> None:
    """ValueError unless `export` takes these arguments; needs no torch."""
    if file.suffix not in FORMATS:
        raise ValueError(f"{file}: wanted a name that ends in {' or '.join(FORMATS)}")
    if not set(dynamic) <= set(DYNAMIC):
        raise ValueError(f"dynamic={tuple(dynamic)}: wanted of {', '.join(DYNAMIC)}")
    if file.suffix != ".onnx" and opset is not None:
        raise ValueError(f"opset={opset} says nothing to a {file.suffix} file: leave it out")
    if opset not in (None, *OPSETS):
        raise ValueError(f"opset={opset}: wanted {', '.join(map(str, OPSETS))}")
    if file.suffix == ".onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise ValueError("ONNX needs onnx, onnxscript and onnxruntime: pip install 'attneck[export]'")
    check_writable(file)


def check_writable(file: Path) -> None:
    """ValueError unless `file` can be written."""
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise ValueError(f"{file}: there is no folder {file.parent} that can be written to")
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file")


def _input(
    model: nn.Module, image_size: int | tuple[int, int] | None, in_chans: int | None
) -> tuple[int, int, int]:
    """Channels, height and width of the images: those given, or the model's own."""
    origin: Origin | None = getattr(model, "origin", None)
    known: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if origin is not None:
        known = (origin.in_chans, *origin.image_size)
    if known is None and image_size is None:
        raise ValueError(
            f"image_size: this {type(model).__name__} does not say what it was made for; give it"
        )
    height, width = known[1:] if image_size is None else sides("image_size", image_size)
    return whole("in_chans", (known[0] if known else 3) if in_chans is None else in_chans), height, width
