"""A network from weights that were trained on something else: whatever fits by name and shape."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attneck.checks import MOST
from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.layers.mhsa import TABLES
from attneck.models.origin import bare
from attneck.models.renamed import INSIDE, renamed
from attneck.models.weight_files import Weights, read_tensors, shown, unwrapped

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


ATTENTION = (MHSA2d, BAM, SqueezeExcite2d, NonLocal2d)
THEIR_SE = {"SEModule", "SqueezeExcite", "SqueezeExcitation", "EffectiveSEModule"}
"""Names of timm's and torchvision's classes of squeeze-and-excitation."""
THEIRS = THEIR_SE | {"BottleneckAttn"}
"""And of attention."""
INSERTED = "bot"
"""The name of a whole block with attention that stands between two others."""
CLASSIFIERS = ("fc", "head", "classifier")
"""What a last layer is called, where the network does not say."""
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
"""The modules that activations are defined in."""
SAME = {"Swish": "SiLU", "HardSwish": "Hardswish", "HardSigmoid": "Hardsigmoid", "GELUTanh": "GELU by tanh"}
"""timm's names of activations that torch has, too."""
ADAPTER = re.compile(r"\blora_[AB]\b|\bbase_layer\b")
ADAPTED = "; these have adapters (LoRA): merge them into their network first, as peft's merge_and_unload does"
"""What is said of weights that have the names of ADAPTER, and fit nowhere."""
COUNT = "num_batches_tracked"
"""What a BatchNorm's count of batches is called."""
POSITIONS = re.compile(r"\.pos_emb(?:ed)?\.")
"""Where the name of others' attention ends in that of a position table of it."""
SHOWN = 6
"""Modules and shapes that a summary names."""


class StaysRandomWarning(UserWarning):
    """More stays random than attention and the classifier."""


@dataclass(frozen=True)
class Loaded:
    """Names of tensors, as the network calls them. As a string it is a summary; `listing` has every name."""

    taken: list[str]
    new: list[str]
    """Of the network, that it was given nothing for: they stay as they were initialised."""
    unused: list[str]
    """Given, that the network has no place for: the classifier, the convolutions that were replaced."""
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Of those that are given in another shape: that shape, and the network's."""
    modules: dict[str, int] = field(default_factory=dict)
    """How many tensors of `new` are in which layer; attention counts as one layer, with its kind."""
    unexpected: list[str] = field(default_factory=list)
    """Of `new`: in neither attention nor the classifier."""
    changed: list[str] = field(default_factory=list)
    """Layers that were filled and compute otherwise than where the weights are from, if that is known."""
    part: str = ""
    """The entry of a file that they were in, such as "state_dict_ema"; "" where they were all of it."""

    def __str__(self) -> str:
        source = f" of its {self.part}" if self.part else ""
        lines = [f"{len(self.taken)} tensors taken{source}"]
        if self.new:
            counts = (f"{shown(name)}: {count}" for name, count in self.modules.items())
            lines.append(f"{len(self.new)} new ({_first(counts, len(self.modules))})")
        if self.unused:
            layers = dict.fromkeys(map(_layer, self.unused))
            lines.append(f"{len(self.unused)} not used ({_first(map(shown, layers), len(layers))})")
        if self.shapes:
            lines.append(f"another shape: {_first(self._shapes(), len(self.shapes))}")
        return "; ".join(lines)

    def _shapes(self) -> list[str]:
        return [f"{shown(name)} {given}, wanted {wanted}" for name, (given, wanted) in self.shapes.items()]

    @property
    def listing(self) -> str:
        """Every name that was not simply taken, a line each."""
        said = {
            "new": map(shown, self.new),
            "not used": map(shown, self.unused),
            "shape": self._shapes(),
            "changed": self.changed,
        }
        return "\n".join(f"{kind:9} {name}" for kind, names in said.items() for name in names)

    @property
    def warning(self) -> str | None:
        """One line, if more stays random than attention and the classifier, or a layer was filled in part.

        Or if some of the weights' BAMs, or layers that compute otherwise, have no place; or stay switched
        off.
        """
        taken = {name.rpartition(".")[0] for name in self.taken}
        taken |= {layer.removesuffix(".qkv") for layer in taken}  # attention's tables lie beside it
        cut = [
            name
            for name in self.unused
            if name.rpartition(".")[0] in taken and name not in self.shapes and not name.endswith(COUNT)
        ]
        if self.unexpected:
            layers = dict.fromkeys(map(_layer, self.unexpected))
            count = f"{len(self.unexpected)} of {len(self.taken) + len(self.new)} tensors"
            return (
                f"more stays random than attention and the classifier ({count}), in "
                f"{_first(map(shown, layers), len(layers), 3)}: are these the weights of another network?"
            )
        if any(".gate_c." in name for name in self.unused) and any("BAM" in name for name in self.modules):
            return (
                "the BAMs stay random, as those given are of the authors' code and the network's of the "
                "paper: build it with bam_variant official"
            )
        ours = taken | {name.rpartition(".")[0].removesuffix(".qkv") for name in self.new}
        theirs_of = {name: POSITIONS.split(name)[0] for name in self.unused if POSITIONS.search(name)}
        if layers := dict.fromkeys(layer for layer in theirs_of.values() if layer in ours):
            return (
                f"these weights' attention at {_first(map(shown, layers), len(layers), 3)} has the names of "
                "another implementation, so that positions stay random: attneck.surgery.adopt's "
                "report.converted(weights) gives them ours"
            )
        of_bam = INSIDE[BAM]
        mine = (of_bam.split(name)[0] for name in (*self.taken, *self.new) if of_bam.search(name))
        own = dict.fromkeys(mine)
        theirs = dict.fromkeys(of_bam.split(name)[0] for name in self.unused if of_bam.search(name))
        # Of a network without any, that is its name.
        if own and (bams := [layer for layer in theirs if layer not in own]):
            return (
                f"the network has no BAM at {_first(map(shown, bams), len(bams), 3)}, where these weights "
                f"have one, and computes something else than they did; its own: {_first(own, len(own), 3)}"
            )
        if self.changed:
            return (
                "layers compute otherwise than where the weights are from: "
                f"{_first(self.changed, len(self.changed), 3)}; train on before you use it"
            )
        gated = [name.removesuffix(".gain") for name in self.new if name.endswith(".gain")]
        if off := [layer for layer in gated if any(name.startswith(f"{layer}.") for name in self.taken)]:
            return (
                f"{_first(map(shown, off), len(off), 3)}: filled, and switched off by a gain of 0, of which "
                "these weights have none: put them in with start paper"
            )
        if cut:
            return (
                f"layers were filled in part, and compute something else than they did: the network has no "
                f"place for {_first(map(shown, cut), len(cut), 3)}"
            )
        return None


def _layer(name: str) -> str:
    """The name of a tensor's layer."""
    return name.rpartition(".")[0] or name


def _first(words: Iterable[str], count: int, most: int = SHOWN) -> str:
    """The first few of `count` words, and how many more there are."""
    some = list(islice(words, most))
    return ", ".join([*some, f"{count - most} more"] if count > most else some)


def load_matching(
    network: nn.Module, weights: Mapping[str, Any] | str | Path, *, new: Collection[str] = ()
) -> Loaded:
    """Put into `network` every tensor of its name and shape; say which, and what is new.

    A ResNet's weights fill a BoTNet but for the layers that attention replaced, and any network that surgery
    changed; what is new stays random. Position tables of another map size are resampled. They go with the
    layer's projections: tables of another head width, or without `qkv.weight` of this shape, are not used. A
    ViT's position embeddings of another square image are resampled too; as many as the network's own count as
    those of its own grid of patches, unless the weights say which they are of (those of `pretrained` do).

    Names may be those of other programs, see `attneck.models.renamed`.

    Args:
        network: any module.
        weights: a state dict (of timm's names for a ResNet of the catalog, such as timm's own with
            `pretrained=True`), or a file with one: safetensors, or what torch saved. There it may be an entry
            of a checkpoint, in this order: "state_dict_ema", "model_ema", "state_dict", "model",
            "model_state_dict". Nothing in a file is run. Numbers of another float type are cast.
        new: names of further modules that may stay new, beside attention and the classifier.

    Raises:
        ValueError: a file that is damaged or holds no weights (see `weight_files`), none that fits, or one
            with NaN, with infinities, or of no float type where the network has floats; a network on the meta
            device.
        FileNotFoundError: no such file.

    Warns:
        StaysRandomWarning: `Loaded.warning`.
    """
    network = bare(network)
    given = renamed(read_weights(weights), network)
    own = network.state_dict()
    if nowhere := [name for name, tensor in own.items() if tensor.is_meta]:
        raise ValueError(
            f"the network is on the meta device ({nowhere[0]}), where weights have no place: build it on the "
            "CPU, or call to_empty(device='cpu') on it and then reset_parameters of all its modules, the "
            "inner ones first"
        )
    given.update(_position_embeddings(network, given))
    taken = _fitting(network, given, own)
    if not taken:
        raise ValueError(
            f"none of the {len(given)} tensors given ({', '.join(map(shown, [*given][:3]))}, …) fits the "
            f"network ({', '.join([*own][:3])}, …): wanted those of a network of the same family, by timm's "
            f"names{ADAPTED if any(ADAPTER.search(name) for name in given) else ''}"
        )
    network.load_state_dict(taken, strict=False)
    loaded = _loaded(network, given, own, taken, new)
    if loaded.warning is not None:
        warnings.warn(loaded.warning, StaysRandomWarning, stacklevel=2)
    return loaded


def _fitting(network: nn.Module, given: Weights, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of `given` has a place, as the network has it: of its shape, or a table that it resamples."""
    # A state dict that was halved whole has its counts of batches, too, which are no weights.
    fits = {
        name: name in own
        and tensor.shape == own[name].shape
        and (tensor.dtype == own[name].dtype or not name.endswith(COUNT))
        for name, tensor in given.items()
    }
    for layer, module in network.named_modules():
        if isinstance(module, MHSA2d):
            prefix = f"{layer}." if layer else ""
            for table in TABLES[module.position]:
                if (name := prefix + table) in given:
                    fits[name] = fits.get(f"{prefix}qkv.weight", False) and _fits(module, given[name])
    return {name: cast(name, tensor, own[name].dtype) for name, tensor in given.items() if fits[name]}


def _loaded(
    network: nn.Module,
    given: Weights,
    own: Mapping[str, Tensor],
    taken: Collection[str],
    new: Collection[str],
) -> Loaded:
    """The report on a network that was filled with the tensors of the names `taken`."""
    # A BatchNorm's count of batches, which is in no checkpoint of old, is no weight.
    left = [name for name in own if name not in taken and not name.endswith(COUNT)]
    attention = {
        name: type(module).__name__
        for name, module in network.named_modules()
        if isinstance(module, ATTENTION)
        or type(module).__name__ in THEIRS
        or name.rpartition(".")[2] == INSERTED
    }

    def layer_of(name: str) -> str:
        layer = next((layer for layer in attention if _inside(name, layer)), None)
        if layer is None:
            return _layer(name)
        return f"{layer or '.'} ({attention[layer]})"

    expected = (*attention, *_classifiers(network), *new)
    unused = [name for name in given if name not in taken and not (name in own and name.endswith(COUNT))]
    return Loaded(
        list(taken),
        left,
        unused,
        shapes={
            name: ([*given[name].shape], [*own[name].shape])
            for name in unused
            if name in own and given[name].shape != own[name].shape
        },
        modules=dict(Counter(map(layer_of, left))),
        unexpected=[name for name in left if not any(_inside(name, module) for module in expected)],
        changed=[
            f"{name} {now}, was {given.settings[name]}"
            for name, now in settings(network).items()
            if given.settings.get(name, now) != now
        ],
        part=given.part,
    )


def settings(network: nn.Module) -> dict[str, str]:
    """What shapes do not show of its convolutions and activations, by their names."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            # timm's Conv2dSame pads by the size of the map.
            padding = module.padding if type(module) is nn.Conv2d else type(module).__name__
            said = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
            found.update({f"{name} {key}": str(value) for key, value in said.items()})
        elif type(module).__module__.startswith(ACTIVATIONS):
            kind = type(module).__name__.removesuffix("Me")  # timm's that take less memory
            kind = SAME.get(kind, kind)
            approximate = getattr(module, "approximate", "none")  # GELU's
            found[name] = kind if approximate == "none" else f"{kind} by {approximate}"
    return found


def _inside(name: str, module: str) -> bool:
    return module == "" or name.startswith(f"{module}.") or name == module


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """The names of the layers that the number of classes shapes."""
    said = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or CLASSIFIERS
    return (said,) if isinstance(said, str) else tuple(said)


def grids(network: nn.Module) -> dict[str, tuple[int, int]]:
    """The rows and columns of patches of each ViT's position embeddings, by their name."""
    found = {}
    for layer, module in network.named_modules():
        own = getattr(module, "pos_embed", None)
        grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
        if isinstance(own, Tensor) and own.ndim == 3 and grid is not None:
            found[f"{layer}.pos_embed" if layer else "pos_embed"] = (int(grid[0]), int(grid[1]))
    return found


def _position_embeddings(network: nn.Module, given: Weights) -> dict[str, Tensor]:
    """ViTs' embeddings [1, N, C] that are given for another grid of patches, resampled to the network's."""
    found, own = {}, network.state_dict()
    for name, grid in grids(network).items():
        tensor = given.get(name)
        if tensor is None or tensor.ndim != 3 or name not in own:
            continue
        extra = own[name].shape[1] - grid[0] * grid[1]  # the class's own
        side = math.isqrt(max(0, tensor.shape[1] - extra))
        was = given.grids.get(name, grid if tensor.shape == own[name].shape else (side, side))
        if was != grid and side and tensor.shape == (1, was[0] * was[1] + extra, own[name].shape[2]):
            from timm.layers import resample_abs_pos_embed

            found[name] = resample_abs_pos_embed(tensor, [*grid], [*was], extra)
    return found


def _fits(layer: MHSA2d, table: Tensor) -> bool:
    """Whether `layer` resamples this table into its own: [rows, d] of its d, 2H-1 rows where relative."""
    rows = len(table) if table.ndim == 2 and table.shape[1] == layer.head_width else 0
    if rows >= 2 * MOST:  # of no map; one expanded from a single number would fill the memory
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


def read_weights(weights: Mapping[str, Any] | str | Path) -> Weights:
    """The state dict in a file, or the one given, itself or as an entry of what a training program saved.

    Raises: as `weight_files.read_tensors`.
    """
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, Mapping):
        return unwrapped(weights, "weights")
    return read_tensors(Path(weights))
