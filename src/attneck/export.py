"""Exports a network as ONNX, or as PyTorch's exported program (.pt2).

Both graphs have standard operators only. Before a file is written, its results are compared with the
network's, at the one input shape or at several. A file ends with a SHA-256 of all before it (`seal`).
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attneck.errors import one_line
from attneck.files import write_atomic
from attneck.models.origin import Origin, bare
from attneck.seal import seal, verify

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

__all__ = ["DisagreementError", "Exported", "check_request", "check_writable", "export", "verify"]

FORMATS = (".onnx", ".pt2")
OPSETS = (18, 20, 23)
DYNAMIC = ("batch", "size")
"""What may be dynamic in a graph: the number of images, and their height and width."""

TOLERANCE = 1e-4
"""Greatest difference between a file's results and the network's, relative to max(1, the largest value)."""

ROUNDS = 5
"""Timed rounds: network and file take turns, and the medians are shown."""

Function = Callable[["Tensor"], "list[Tensor]"]


class DisagreementError(RuntimeError):
    """The exported graph does not compute what the network does; nothing was written."""


@dataclass(frozen=True)
class Check:
    """The largest difference from the network on one batch, and its ratio to the largest value there."""

    shape: tuple[int, ...]
    max_abs: float
    max_rel: float


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
    model: nn.Module,
    file: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    batch: int = 1,
    dynamic: Collection[str] = (),
    opset: int | None = None,
) -> Exported:
    """Write `model`, in evaluation mode and float32, as `file`: .onnx or .pt2.

    Args:
        model: any network from images [B, C, H, W] to a tensor or a list of tensors; it is not changed.
        image_size: side or (height, width) in pixels; if not given, that of `create_model` or of timm's
            `pretrained_cfg`.
        in_chans: C; likewise.
        batch: B, unless that is dynamic.
        dynamic: "batch", "size" or both.
        opset: of ONNX, 18 if not given; a file with another is never written.

    Raises:
        ValueError: what `check_request` refuses; a network that torch.export does not take, or not with
            these axes dynamic.
        DisagreementError: the file's results differ by more than TOLERANCE.
        OSError: the file could not be written.
    """
    import torch

    file, model = Path(file), bare(model)
    check_request(file, dynamic, opset)
    channels, height, width = _input(model, image_size, in_chans)
    if min(batch, channels, height, width) < 1:
        raise ValueError(f"images {[batch, channels, height, width]}: wanted 1 or more of each")
    network: Any = copy.deepcopy(model).to("cpu", torch.float32).eval()
    # Dynamic axes are traced at lengths that torch.export does not specialise on: not 1, not the model's
    # own, not equal.
    longer = 32 * ("size" in dynamic)
    example = _images((max(batch, 1 + ("batch" in dynamic)), channels, height + longer, width + 2 * longer))
    with torch.no_grad():
        program = _capture(network, example, dynamic)
        lowest = _smallest(program) if "size" in dynamic else None
        shapes = _shapes(batch, channels, (height, width), dynamic, lowest)
        if file.suffix == ".onnx":
            opset = opset or OPSETS[0]
            data = seal(_onnx(program, example, dynamic, opset), file.suffix)
            exported = _onnxruntime(data)
        else:
            data = seal(_pt2(program), file.suffix)
            exported = _loaded(data)
        eager: Function = lambda images: _tensors(network(images))  # noqa: E731
        checks = [_compare(eager, exported, shape) for shape in shapes]
        eager_ms, exported_ms = _race([eager, exported], _images(shapes[0]))
    write_atomic(file, data)
    names = _axes(dynamic)
    return Exported(
        file=file,
        format=file.suffix[1:],
        opset=opset,
        input=tuple(names.get(axis, length) for axis, length in enumerate(shapes[0])),
        smallest=lowest,
        bytes=len(data),
        checks=checks,
        eager_ms=eager_ms,
        exported_ms=exported_ms,
        threads=torch.get_num_threads(),
    )


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
    known: Any = getattr(model, "pretrained_cfg", {}).get("input_size")
    if origin is not None:
        known = (origin.in_chans, *origin.image_size)
    if known is None and image_size is None:
        raise ValueError(
            f"image_size: this {type(model).__name__} does not say what it was made for; give it"
        )
    if image_size is None:
        height, width = known[1:]
    else:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return in_chans or (known[0] if known else 3), height, width


def _axes(dynamic: Collection[str]) -> dict[int, str]:
    """The dynamic axes of the images, and their names."""
    axes = {0: "batch"} if "batch" in dynamic else {}
    return axes | ({2: "height", 3: "width"} if "size" in dynamic else {})


def _capture(network: nn.Module, example: Tensor, dynamic: Collection[str]) -> ExportedProgram:
    """The network's graph of aten operators."""
    import torch
    from torch.export import Dim

    axes = dict.fromkeys(_axes(dynamic), Dim.DYNAMIC)
    try:
        return torch.export.export(network, (example,), dynamic_shapes=(axes,) if axes else None)
    except (RuntimeError, ValueError) as error:
        how = f" with a dynamic {' and '.join(dynamic)}" if dynamic else ""
        raise ValueError(f"torch.export does not take this network{how}: {one_line(error)}") from error


def _smallest(program: ExportedProgram) -> tuple[int, int]:
    """The least height and width that the graph takes."""
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


def _onnx(program: ExportedProgram, example: Tensor, dynamic: Collection[str], opset: int) -> bytes:
    """The graph in ONNX's operators of that opset."""
    import onnx
    import torch

    converted: Any = torch.onnx.export(
        program,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=["images"],
        dynamic_shapes=(_axes(dynamic),) if dynamic else None,
        external_data=False,
        verbose=False,
    )
    model = converted.model_proto
    # If the exporter cannot convert to an opset, it keeps another without a word.
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset or any(node.domain for node in model.graph.node):
        raise ValueError(f"asked for ONNX opset {opset}, and PyTorch's exporter gave {found}")
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _onnxruntime(data: bytes) -> Function:
    """Runs the file on the CPU, with as many threads as PyTorch has."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})]


def _pt2(program: ExportedProgram) -> bytes:
    """The graph as PyTorch saves it."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _loaded(data: bytes) -> Function:
    """Runs what `_pt2` saved."""
    import torch

    graph = torch.export.load(io.BytesIO(data)).module()
    return lambda images: _tensors(graph(images))


def _images(shape: tuple[int, ...]) -> Tensor:
    """The same noise each time."""
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def _tensors(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _compare(eager: Function, exported: Function, shape: tuple[int, ...]) -> Check:
    """The difference of both on the same images."""
    images = _images(shape)
    largest = relative = 0.0
    for want, got in zip(eager(images), exported(images), strict=True):
        fits, scale = got.shape == want.shape, float(want.abs().max())
        difference = float((got - want).abs().max()) if fits else float("inf")
        if not difference <= TOLERANCE * max(1.0, scale):  # NaN is refused too
            raise DisagreementError(
                f"on images {list(shape)} the exported graph is {difference:.1e} off, with values up to "
                f"{scale:.1e}: more than {TOLERANCE}; nothing was written"
            )
        largest, relative = max(largest, difference), max(relative, difference / scale if scale else 0.0)
    return Check(shape, largest, relative)


def _race(functions: list[Function], images: Tensor) -> list[float]:
    """Each one's median time in milliseconds; they take turns, and the first round is left out."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = perf_counter()
            function(images)
            seconds.append(perf_counter() - start)
    return [1000 * median(seconds[1:]) for seconds in times]
