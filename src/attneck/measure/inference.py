"""Whole classifiers as they are served: folded, channels_last, compiled; and the same by others' layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from attneck.layers import BAM, MHSA2d
from attneck.layers.fold import fold
from attneck.measure.contestants import COMPILED, EXPANDED, OURS, TIMM, ExpandedBAM
from attneck.models import create_model

ONNXRUNTIME = "onnxruntime"
"""Runs the exported graph; who asks for it makes the file."""


@dataclass(frozen=True)
class InferenceCase:
    """Logits of a batch of images, in float32."""

    model: str
    image_size: int
    batch: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.model} {self.image_size} b{self.batch} {self.dtype}"


def network_of(case: InferenceCase) -> nn.Module:
    """The network, in evaluation mode, with the same weights each time: ImageNet's 1000 classes."""
    torch.manual_seed(0)
    return create_model(case.model, num_classes=1000, image_size=case.image_size).eval()


def images_of(case: InferenceCase) -> torch.Tensor:
    """Noise, [B, 3, H, W], the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(case.batch, 3, case.image_size, case.image_size, generator=generator)


def inference_names(case: InferenceCase, compiled: bool) -> list[str]:
    """This project's form first, then the same with timm's attention, or with BAM's branches expanded."""
    with torch.device("meta"):
        layers = list(network_of(case).modules())
    names = [OURS]
    if any(isinstance(layer, MHSA2d) for layer in layers):
        names.append(TIMM)
    if any(isinstance(layer, BAM) for layer in layers):
        names.append(EXPANDED)
    return names + [name + COMPILED for name in names if compiled]


def inference_call(case: InferenceCase, name: str, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """Logits by `name`. Who is compiled has constant weights, so BatchNorms become part of convolutions.

    Raises ValueError for a network with layers that `name` does not have.
    """
    peer, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    network = network_of(case)
    if peer == OURS:
        network = fold(network)
    elif peer == TIMM:
        with_timms_attention(network)
    else:
        for layer in network.modules():
            if isinstance(layer, BAM):
                layer.__class__ = ExpandedBAM
    network = network.to(device).to(memory_format=torch.channels_last)
    images = images_of(case).to(device).contiguous(memory_format=torch.channels_last)
    if compiled:
        network.compile(options={"freezing": True})

    def logits() -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = network(images)
        return result

    return logits


def with_timms_attention(network: nn.Module) -> None:
    """Put timm's BottleneckAttn in the place of each MHSA2d, with its weights: the same function.

    Raises ValueError for a layer that timm's has no form of.
    """
    from timm.layers.bottleneck_attn import BottleneckAttn

    for name, layer in list(network.named_modules()):
        if not isinstance(layer, MHSA2d):
            continue
        odd = layer.stride == 2 and any(side % 2 for side in layer.map_size)
        if layer.position != "relative" or not layer.content or odd:
            raise ValueError(f"{name}: timm's BottleneckAttn has no such attention")
        theirs = BottleneckAttn(
            layer.channels,
            feat_size=layer.map_size,
            stride=layer.stride,
            num_heads=layer.heads,
            scale_pos_embed=True,
        )
        theirs.qkv.weight = layer.qkv.weight
        theirs.pos_embed.height_rel, theirs.pos_embed.width_rel = layer.rel_h, layer.rel_w
        network.set_submodule(name, theirs.eval())
