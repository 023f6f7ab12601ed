"""A graph's file, .onnx or .pt2: written, and run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attneck.errors import one_line
from attneck.export.agreement import Function, tensors
from attneck.export.graph import Traced, without_their_warnings

if TYPE_CHECKING:
    from torch.export import ExportedProgram
THRESHOLD = "least_score"
"""The name of a detector's threshold among the tensors of its graph."""

INPUT = "image"
"""The name of every graph's input.

Outputs are `logits`, or `features` where the classifier is taken off, or what a detector finds, or `map_0`,
`map_1` …
"""


def check_convertible(program: ExportedProgram) -> None:
    """ValueError for an adaptive pool that makes more than one place of a map of an open size.

    ONNX has no such operator, and PyTorch's exporter keeps the windows that it has at one size.
    """
    for node in program.graph.nodes:
        name = str(node.target)
        if node.op == "call_function" and name.startswith("aten.adaptive_"):
            rows = node.args[1]
            lengths = node.args[0].meta["val"].shape[-len(rows) :]
            if {*rows} != {1} and not all(type(length) is int for length in lengths):
                raise ValueError(
                    f"ONNX has no {name.split('.')[1]} to {' × '.join(map(str, rows))} of a map of any size: "
                    "leave size out of dynamic, or write a .pt2"
                )


def to_onnx(traced: Traced, opset: int, about: Mapping[str, str]) -> bytes:
    """The graph in ONNX's operators of that opset."""
    import onnx
    import torch

    detectors_own: Any = {torch.ops.torchvision.roi_pool.default: _roi_pool} if traced.detects else None
    try:
        with without_their_warnings():
            converted: Any = torch.onnx.export(
                traced.program,
                (traced.example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=traced.outputs,
                dynamic_shapes=(traced.axes,) if traced.axes else None,
                external_data=False,
                # On a detector's thousands of operators that takes minutes; onnxruntime does it as it loads.
                optimize=not traced.detects,
                custom_translation_table=detectors_own,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"PyTorch's exporter makes no ONNX of this network: {one_line(error)}") from error
    model = converted.model_proto
    # If the exporter cannot convert to an opset, it keeps another without a word.
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset or any(node.domain for node in model.graph.node):
        raise ValueError(f"asked for ONNX opset {opset}, and PyTorch's exporter gave {found}")
    if traced.detects:
        for output in model.graph.output:  # else a formula
            output.type.tensor_type.shape.dim[0].dim_param = "objects"
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _roi_pool(x: Any, regions: Any, scale: float, height: int, width: int) -> Any:
    """torchvision's operator in ONNX's, for which the exporter's own takes other arguments.

    Its second result, where the maxima lie, nothing reads: any tensor stands for it.
    """
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(x, regions, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, pooled


def runner(data: bytes, suffix: str, least_score: float | None = None) -> Function:
    """Runs the file; of a detector with another threshold, if one is given."""
    return (_onnxruntime if suffix == ".onnx" else loaded)(data, least_score)


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


def to_pt2(program: ExportedProgram, about: Mapping[str, str]) -> bytes:
    """The graph as PyTorch saves it; metadata.json is in its extra files."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(dict(about))})
    return buffer.getvalue()


def loaded(data: bytes, least_score: float | None = None) -> Function:
    """Runs what `to_pt2` saved."""
    import torch

    graph: Any = torch.export.load(io.BytesIO(data)).module()
    if least_score is not None:
        graph.get_buffer(THRESHOLD).fill_(least_score)
    return lambda images: tensors(graph(images))
