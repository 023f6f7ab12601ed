"""A network from weights that were trained on something else: whatever fits by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attneck.layers.mhsa import TABLES, MHSA2d
from attneck.models.options import MAX_SIDE
from attneck.models.weight_files import check_plain, read_tensors, shown

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
        lines += [f"new: {', '.join(map(shown, self.new))}"] if self.new else []
        lines += [f"not used: {', '.join(map(shown, self.unused))}"] if self.unused else []
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
            a run. Nothing in a file is run. Numbers of another float type are cast.

    Raises:
        ValueError: a file that is damaged or holds no weights (see `weight_files`), none that fits, or one
            with NaN, with infinities, or of no float type where the network has floats.
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
    taken = {name: cast(name, tensor, own[name].dtype) for name, tensor in given.items() if fits[name]}
    if not taken:
        raise ValueError(
            f"none of the {len(given)} tensors given ({', '.join(map(shown, [*given][:3]))}, …) fits the "
            f"network ({', '.join([*own][:3])}, …): wanted those of a network of the same family, by timm's "
            "names"
        )
    network.load_state_dict(taken, strict=False)
    # A BatchNorm's count of batches, which is in no checkpoint of old, is no weight.
    new = [name for name in own if name not in taken and not name.endswith("num_batches_tracked")]
    return Loaded(list(taken), new, [name for name in given if name not in taken])


def _fits(layer: MHSA2d, table: Tensor) -> bool:
    """Whether `layer` resamples this table into its own: [rows, d] of its d, 2H-1 rows where relative."""
    rows = len(table) if table.ndim == 2 and table.shape[1] == layer.head_width else 0
    if rows >= 2 * MAX_SIDE:  # of no map; one expanded from a single number would fill the memory
        return False
    return rows % 2 == 1 if layer.position == "relative" else rows > 0


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` as the network has it; ValueError where that would be another number, or none.

    Floats are cast to floats, and must be finite afterwards; everything else has to be of the same type.
    """
    floats = dtype.is_floating_point and tensor.dtype in FLOATS
    if not floats and tensor.dtype != dtype:
        has, wanted = (str(each).removeprefix("torch.") for each in (tensor.dtype, dtype))
        raise ValueError(f"tensor {shown(name)} is of {has}, and the network's of {wanted}: convert it first")
    tensor = tensor.to(dtype)
    if floats and not bool(tensor.isfinite().all()):
        raise ValueError(
            f"tensor {shown(name)} is not finite in {str(dtype).removeprefix('torch.')}: damaged, or its "
            "training had diverged; take other weights"
        )
    return tensor


def read_weights(weights: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    """The state dict in a file, or the one given.

    Raises: as `weight_files.read_tensors`.
    """
    if isinstance(weights, Mapping):
        return check_plain(weights, "weights")
    return read_tensors(Path(weights))
