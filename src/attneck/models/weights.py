"""A network from weights that were trained on something else: whatever fits by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attneck.layers.mhsa import TABLES, MHSA2d


@dataclass(frozen=True)
class Loaded:
    """Names of tensors, as the network calls them."""

    taken: list[str]
    new: list[str]
    """Of the network, that it was given nothing for: they stay as they were initialised."""
    unused: list[str]
    """Given, that the network has no place for: the classifier, the convolutions that were replaced."""

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken"]
        lines += [f"new: {', '.join(self.new)}"] if self.new else []
        lines += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(lines)


def load_matching(network: nn.Module, weights: Mapping[str, Tensor] | str | Path) -> Loaded:
    """Put into `network` every tensor of its name and shape; say which, and what is new.

    A ResNet's weights fill a BoTNet but for the layers that attention replaced, and any network that surgery
    changed; what is new stays random. Position tables of another map size are resampled. They go with the
    layer's projections: tables of another head width, or without `qkv.weight` of this shape, are not used.

    Args:
        network: any module.
        weights: a state dict (of timm's names for a ResNet of the catalog, such as timm's own with
            `pretrained=True`), or a file with one: safetensors, or what torch saved, such as a checkpoint of
            a run. Nothing in a file is run.

    Raises:
        ValueError: a file that holds no weights, or none of which fits.
        FileNotFoundError: no such file.
    """
    given = read_weights(weights)
    own = network.state_dict()
    fits = {name: name in own and tensor.shape == own[name].shape for name, tensor in given.items()}
    for layer, module in network.named_modules():
        if isinstance(module, MHSA2d):
            prefix = f"{layer}." if layer else ""
            for table in TABLES[module.position]:
                if (name := prefix + table) in given:
                    fits[name] = fits.get(f"{prefix}qkv.weight", False) and _fits(module, given[name])
    taken = {name: tensor for name, tensor in given.items() if fits[name]}
    if not taken:
        raise ValueError(
            f"none of the {len(given)} tensors given ({', '.join([*given][:3])}, …) fits the network "
            f"({', '.join([*own][:3])}, …): wanted those of a network of the same family, by timm's names"
        )
    network.load_state_dict(taken, strict=False)
    # A BatchNorm's count of batches, which is in no checkpoint of old, is no weight.
    new = [name for name in own if name not in taken and not name.endswith("num_batches_tracked")]
    return Loaded(list(taken), new, [name for name in given if name not in taken])


def _fits(layer: MHSA2d, table: Tensor) -> bool:
    """Whether `layer` resamples this table into its own: [rows, d] of its d, 2H-1 rows where relative."""
    rows = len(table) if table.ndim == 2 and table.shape[1] == layer.head_width else 0
    return rows % 2 == 1 if layer.position == "relative" else rows > 0


def read_weights(weights: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    """The state dict in a file, or the one given; a run's checkpoint has it under "model"."""
    if isinstance(weights, Mapping):
        return weights
    path = Path(weights)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): wanted a safetensors file, or tensors by name "
            "as torch.save writes them, and nothing that would run code"
        ) from error
    found = found.get("model", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict: wanted tensors by name")
    return found
