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
    """The exported file's, with as many threads as PyTorch has."""
    from attneck.export import export
    from attneck.export.formats import runner

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        export(network_of(case), file, image_size=case.image_size, in_chans=3, batch=case.batch)
        run = runner(file.read_bytes(), file.suffix)
    images = images_of(case)
    return lambda: run(images)[0]
