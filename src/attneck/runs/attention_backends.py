"""By which backends a run computes its attention: a part of what its numbers are made from."""

import torch
from torch import nn

from attneck.attention import choose
from attneck.layers import BAM, MHSA2d
from attneck.training.precision import precision
from attneck.training.recipe import Recipe


def attention_backends(model: nn.Module, recipe: Recipe, device: torch.device) -> str:
    """Of each map that the model's relative attention is made for, "64x64 triton, 14x14 plain", in training.

    Nothing where it has none. On CUDA this is when a kernel is checked.
    """
    found: dict[str, None] = {}
    with torch.enable_grad(), precision(recipe, device):
        for layer in model.modules():
            if isinstance(layer, MHSA2d) and layer.position == "relative":
                H, W = layer.map_size
                q = torch.empty((), device=device).expand(1, layer.heads, H * W, layer.head_width)
                backend = layer.backend
                if backend == "auto":
                    backend = choose(q, (H, W), content=layer.content, gradients=True).name
                found[f"{H}x{W} {backend}"] = None
    return ", ".join(found)


def compiles_passes(model: nn.Module, device: torch.device) -> bool:
    """Whether compiled passes could take part in its numbers: it has attention or BAM, on the CPU."""
    return device.type == "cpu" and any(isinstance(layer, (BAM, MHSA2d)) for layer in model.modules())
