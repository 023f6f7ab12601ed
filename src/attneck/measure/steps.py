"""Whole training steps: of a network, of the same network with plain attention, and of another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.layers import MHSA2d
from attneck.measure.contestants import COMPILED, DTYPES, PLAIN, Direction, PlainMHSA
from attneck.models import catalog, create_model

PLAIN_ATTENTION = f", {PLAIN} attention"


@dataclass(frozen=True)
class StepCase:
    """Forward, backward and SGD step of `model`, compared with those of `plain`."""

    model: str
    plain: str
    image_size: int
    batch: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.model} over {self.plain} {self.image_size} b{self.batch} {self.dtype}"


def step_names(case: StepCase) -> list[str]:
    """The contestants: the model; the same with plain attention, if it attends; the other one."""
    with torch.device("meta"):
        network = create_model(case.model)
    alike = [case.model + PLAIN_ATTENTION] if any(map(_has_plain_form, network.modules())) else []
    return [case.model, *alike, case.plain]


def step_call(case: StepCase, name: str, direction: Direction, device: str = "cpu") -> Callable[[], object]:
    """One training step of `name`: SGD with momentum, channels_last, autocast in half precision.

    A classifier learns noise with cross-entropy; a detector learns drawn scenes with all of its losses. With
    COMPILED behind its name the network is compiled, and of a detector its backbone.
    """
    torch.manual_seed(0)
    detects = catalog.find(case.model).task == "detection"
    data = _scenes if detects else _noise
    name, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    network, losses = data(name.removesuffix(PLAIN_ATTENTION), case.image_size, case.batch, device)
    if name.endswith(PLAIN_ATTENTION):
        for module in filter(_has_plain_form, network.modules()):
            module.__class__ = PlainMHSA
    network.to(device).to(memory_format=torch.channels_last).train()
    if compiled:
        (network.get_submodule("backbone") if detects else network).compile()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    short = case.dtype != "float32"

    def step() -> None:
        with torch.autocast(device, DTYPES[case.dtype] if short else None, enabled=short):
            loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _has_plain_form(module: nn.Module) -> bool:
    return isinstance(module, MHSA2d) and module.position == "relative" and module.content


def _noise(
    name: str, size: int, batch: int, device: str, **options: Any
) -> tuple[nn.Module, Callable[[], Tensor]]:
    with torch.device(device):  # drawing a large network's weights on the CPU takes longer than timing it
        network = create_model(name, num_classes=1000, image_size=size, **options)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device)
    return network, lambda: F.cross_entropy(network(images).float(), labels)


def _scenes(name: str, size: int, batch: int, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    from attneck.data.detection import open_detection

    scenes = open_detection("shapes", "train", image_size=size, size=batch)
    network = create_model(name, num_classes=len(scenes.classes) + 1, image_size=size)
    pairs = [scenes[0, i] for i in range(batch)]
    images = [image.to(device) for image, _ in pairs]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in pairs]
    return network, lambda: torch.stack([*network(images, targets).values()]).sum()


def forward_backward(
    model: str, options: Mapping[str, Any], image_size: int, batch: int, dtype: str, device: str = "cpu"
) -> Callable[[], object]:
    """Forward, cross-entropy and backward of a classifier in training, as BoTNet's Table 14 times it.

    No optimizer; channels_last, autocast in half precision, noise for images. ImageNet's 1000 classes.
    """
    torch.manual_seed(0)
    network, losses = _noise(model, image_size, batch, device, **options)
    network.to(device).to(memory_format=torch.channels_last).train()
    short = dtype != "float32"

    def both() -> None:
        with torch.autocast(device, DTYPES[dtype] if short else None, enabled=short):
            loss = losses()
        loss.backward()
        network.zero_grad(set_to_none=True)

    return both
