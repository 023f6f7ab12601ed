"""Exports a network as ONNX, or as PyTorch's exported program (.pt2).

Both graphs have standard operators only (a detector's program those of torchvision too). Before a file is
written, its results are compared with the network's, at the one input shape or at several. It says what its
results mean, and what images it wants (`metadata`), and ends with a SHA-256 of all before it (`seal`).
"""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.checks import sides, whole
from attneck.errors import one_line
from attneck.export.agreement import (
    CANDIDATES,
    Check,
    DisagreementError,
    Function,
    clouds,
    compare,
    compare_objects,
    noise,
    race,
)
from attneck.files import write_atomic
from attneck.models.origin import Origin, bare
from attneck.seal import seal, verify

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from attneck.export.detectors import Graph
    from attneck.runs.run import Run

__all__ = ["Check", "DisagreementError", "Exported", "check_request", "check_writable", "export", "verify"]

FORMATS = (".onnx", ".pt2")
OPSETS = (18, 20, 23)
DYNAMIC = ("batch", "size")
"""What may be dynamic in a graph: the number of images, and their height and width."""

THRESHOLD = "least_score"
"""The name of a detector's threshold among the tensors of its graph."""

INPUT = "image"
"""The name of every graph's input.

Outputs are `logits`, or `features` where the classifier is taken off, or what a detector finds, or `map_0`,
`map_1` …
"""

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
        ValueError: what `check_request` refuses; a network that torch.export does not take, or not with
            these axes dynamic, or whose result is no tensor and no list of them.
        DisagreementError: the file's results differ by more than rounding.
        OSError: the file could not be written.
        UserError: a run without a checkpoint that is whole.
    """
    import torch

    from attneck.export.detectors import is_detector
    from attneck.export.metadata import metadata

    file = Path(file)
    check_request(file, dynamic, opset)
    model, notes = _network(model, image_size, notes or {})
    channels, height, width = _input(model, image_size, in_chans)
    whole("batch", batch)
    detects = is_detector(model)
    if detects and (batch != 1 or dynamic):
        raise ValueError("a detector's graph takes one image, of any size: leave batch and dynamic out")
    network: Any = _copy(model).to("cpu", torch.float32).eval()
    with torch.no_grad():
        made: _Made
        if detects:
            made = _detector(network, (height, width))
        else:
            made = _plain(network, (batch, channels, height, width), dynamic)
        about = metadata(model, (height, width), detects, made.classes) | notes
        if file.suffix == ".onnx":
            opset = opset or OPSETS[0]
            data = seal(_onnx(made, opset, about), file.suffix)
        else:
            data = seal(_pt2(made.program, about), file.suffix)
        exported = _runner(data, file.suffix)
        checks = made.compare(exported, data, file.suffix)
        rounds = DETECTOR_ROUNDS if detects else ROUNDS
        eager_ms, exported_ms = race([made.eager, exported], made.images[0], rounds)
    write_atomic(file, data)
    return Exported(
        file=file,
        format=file.suffix[1:],
        opset=opset,
        input=tuple(made.axes.get(axis, length) for axis, length in enumerate(made.images[0].shape)),
        smallest=_smallest(made.program) if 2 in made.axes else None,
        bytes=len(data),
        checks=checks,
        eager_ms=eager_ms,
        exported_ms=exported_ms,
        threads=torch.get_num_threads(),
    )


@dataclass
class _Made:
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

    def compare(self, exported: Function, data: bytes, suffix: str) -> list[Check]:
        """`exported` with the network; `data` is the file that it runs."""
        return [compare(images, self.eager, exported) for images in self.images]


@dataclass
class _MadeDetector(_Made):
    graph: Graph
    thresholds: Any
    """What has the detector's `score_thresh`."""

    def compare(self, exported: Function, data: bytes, suffix: str) -> list[Check]:
        """Both with a threshold that leaves the same number of boxes whatever the detector is sure of."""
        own = self.thresholds.score_thresh
        best = [self.graph.class_scores(image).flatten() for image in self.images]
        least = min(float(each.topk(min(CANDIDATES, len(each))).values[-1]) for each in best)
        exported = _runner(data, suffix, least)
        self.thresholds.score_thresh = least
        try:
            return [
                compare_objects(image, self.eager, exported, self.graph.candidates(image))
                for image in self.images
            ]
        finally:
            self.thresholds.score_thresh = own


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
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"this {type(model).__name__} is on the meta device, without weights: load them first"
        )
    try:
        return copy.deepcopy(model)
    except Exception as error:  # torch's old weight_norm, a lock, a model that is sharded
        raise ValueError(
            f"no copy can be made of this {type(model).__name__} ({type(error).__name__}: "
            f"{one_line(error, 150)}): give the network itself, without what computes its weights in hooks"
        ) from error


def _plain(network: nn.Module, shape: tuple[int, int, int, int], dynamic: Collection[str]) -> _Made:
    """The graph of a network from images to tensors."""
    from torch import Tensor

    batch, channels, height, width = shape
    # Dynamic axes are traced at lengths that torch.export does not specialise on: not 1, not the model's
    # own, not equal.
    longer = 32 * ("size" in dynamic)
    example = noise((max(batch, 1 + ("batch" in dynamic)), channels, height + longer, width + 2 * longer))
    eager: Function = lambda images: _tensors(network(images))  # noqa: E731
    try:
        found: Any = network(noise(shape))
    except Exception as error:  # the network's own, of any kind
        raise ValueError(
            f"this {type(network).__name__} does not take images {[*shape]} ({type(error).__name__}: "
            f"{one_line(error, 150)}): give the image_size and in_chans that it takes"
        ) from error
    if not all(isinstance(one, Tensor) for one in _tensors(found)):
        raise ValueError(
            f"this {type(network).__name__} gives a {type(found).__name__}: wanted a tensor or a list of "
            "tensors; export a module whose forward takes what is wanted out of it, net(x)['out'] say"
        )
    is_one = isinstance(found, Tensor)
    decides = getattr(network, "num_classes", None) != 0  # 0 where the classifier is taken off
    classes = found.shape[1] if is_one and found.ndim == 2 and decides else None
    one = "logits" if decides else "features"
    outputs = [one] if is_one else [f"map_{i}" for i in range(len(found))]
    program = _capture(network, example, _axes(dynamic))
    lowest = _smallest(program) if "size" in dynamic else None
    shapes = _shapes(batch, channels, (height, width), dynamic, lowest)
    return _Made(program, example, _axes(dynamic), outputs, eager, [noise(each) for each in shapes], classes)


def _detector(detector: Any, size: tuple[int, int]) -> _MadeDetector:
    """The graph of a detector, for one image of any size."""
    from attneck.export.detectors import as_graph

    graph, axes = as_graph(detector).eval(), _axes(["size"])
    height, width = size
    images = [clouds((1, 3, *sides)) for sides in (size, (height * 3 // 4 + 1, width + width // 4))]
    example = clouds((1, 3, height + 32, width + 64))

    def eager(image: Tensor) -> list[Tensor]:
        found = detector([image[0]])[0]
        return [found[name] for name in graph.outputs]

    return _MadeDetector(
        program=_capture(graph, example, axes),
        example=example,
        axes=axes,
        outputs=list(graph.outputs),
        eager=eager,
        images=images,
        classes=None,
        graph=graph,
        thresholds=getattr(detector, "roi_heads", detector),
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
    known: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if origin is not None:
        known = (origin.in_chans, *origin.image_size)
    if known is None and image_size is None:
        raise ValueError(
            f"image_size: this {type(model).__name__} does not say what it was made for; give it"
        )
    height, width = known[1:] if image_size is None else sides("image_size", image_size)
    return whole("in_chans", (known[0] if known else 3) if in_chans is None else in_chans), height, width


def _axes(dynamic: Collection[str]) -> dict[int, str]:
    """The dynamic axes of the images, and their names."""
    axes = {0: "batch"} if "batch" in dynamic else {}
    return axes | ({2: "height", 3: "width"} if "size" in dynamic else {})


def _capture(network: nn.Module, example: Tensor, axes: dict[int, str]) -> ExportedProgram:
    """The network's graph of aten operators."""
    import torch
    from torch.export import Dim

    dynamic = dict.fromkeys(axes, Dim.DYNAMIC)
    try:
        with _without_theirs():
            return torch.export.export(network, (example,), dynamic_shapes=(dynamic,) if axes else None)
    except (RuntimeError, ValueError) as error:
        how = f" with a dynamic {' and '.join(axes.values())}" if axes else ""
        raise ValueError(f"torch.export does not take this network{how}: {one_line(error)}") from error


@contextmanager
def _without_theirs() -> Iterator[None]:
    """Inside it torchvision's calls of what torch has deprecated are not warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision")
        yield


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


def _onnx(made: _Made, opset: int, about: Mapping[str, str]) -> bytes:
    """The graph in ONNX's operators of that opset."""
    import onnx
    import torch

    try:
        with _without_theirs():
            converted: Any = torch.onnx.export(
                made.program,
                (made.example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=made.outputs,
                dynamic_shapes=(made.axes,) if made.axes else None,
                external_data=False,
                # On a detector's thousands of operators that takes minutes; onnxruntime does it as it loads.
                optimize=not isinstance(made, _MadeDetector),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"PyTorch's exporter makes no ONNX of this network: {one_line(error)}") from error
    model = converted.model_proto
    # If the exporter cannot convert to an opset, it keeps another without a word.
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset or any(node.domain for node in model.graph.node):
        raise ValueError(f"asked for ONNX opset {opset}, and PyTorch's exporter gave {found}")
    if isinstance(made, _MadeDetector):
        for output in model.graph.output:  # else a formula
            output.type.tensor_type.shape.dim[0].dim_param = "objects"
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _runner(data: bytes, suffix: str, least_score: float | None = None) -> Function:
    """Runs the file; of a detector with another threshold, if one is given."""
    return (_onnxruntime if suffix == ".onnx" else _loaded)(data, least_score)


def _onnxruntime(data: bytes, least_score: float | None = None) -> Function:
    """Runs the file on the CPU, with as many threads as PyTorch has."""
    import onnx
    import onnxruntime
    import torch

    if least_score is not None:
        model = onnx.load_from_string(data)
        (threshold,) = (tensor for tensor in model.graph.initializer if tensor.name == THRESHOLD)
        threshold.CopyFrom(onnx.numpy_helper.from_array(torch.tensor(least_score).numpy(), THRESHOLD))
        data = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {INPUT: images.numpy()})]


def _pt2(program: ExportedProgram, about: Mapping[str, str]) -> bytes:
    """The graph as PyTorch saves it; metadata.json is in its extra files."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(dict(about))})
    return buffer.getvalue()


def _loaded(data: bytes, least_score: float | None = None) -> Function:
    """Runs what `_pt2` saved."""
    import torch

    graph: Any = torch.export.load(io.BytesIO(data)).module()
    if least_score is not None:
        graph.get_buffer(THRESHOLD).fill_(least_score)
    return lambda images: _tensors(graph(images))


def _tensors(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (list, tuple)) else [output]
