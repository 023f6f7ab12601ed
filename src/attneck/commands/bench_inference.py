"""attneck bench inference: whole classifiers folded and compiled, against others' layers and onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from attneck.measure.inference import (
    ONNXRUNTIME,
    InferenceCase,
    images_of,
    inference_call,
    inference_names,
    network_of,
)


def cases(model: str, size: int | None, batch: int | None) -> list[InferenceCase]:
    """Both papers' network at 224 pixels, one image and eight; or the one that has a size."""
    if size is not None:
        return [InferenceCase(model, size, batch or 1)]
    return [InferenceCase(name, 224, images) for name in ("botnet50", "resnet50_bam") for images in (1, 8)]


def names(case: InferenceCase, compiled: bool, device: str) -> list[str]:
    """All contestants; onnxruntime where it is installed, on the CPU."""
    installed = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
    return inference_names(case, compiled) + [ONNXRUNTIME] * (installed and device == "cpu")


def call(case: InferenceCase, name: str, direction: str, device: str = "cpu") -> Callable[[], object]:
    """Logits of `case` by `name`; there is no direction but forward."""
    return _onnxruntime(case) if name == ONNXRUNTIME else inference_call(case, name, device)


def _onnxruntime(case: InferenceCase) -> Callable[[], object]:
    """The exported file's session, with as many threads as PyTorch has."""
    import onnxruntime
    import torch

    from attneck.export import INPUT, export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        export(network_of(case), file, image_size=case.image_size, in_chans=3, batch=case.batch)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    images = {INPUT: images_of(case).numpy()}
    return lambda: torch.from_numpy(session.run(None, images)[0])
