"""The names that other programs give to a network's tensors, and the network's own in their place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from attneck.layers import BAM, SqueezeExcite2d
from attneck.models.weight_files import Weights

# Of residual networks for CIFAR that are not torchvision's, such as akamaster's and kuangliu's.
CLASSIFIER = {"linear": "fc"}
PROJECTION = (".shortcut.", ".downsample.")
INSIDE: dict[type[nn.Module], re.Pattern[str]] = {
    BAM: re.compile(r"\.(?:channel|spatial)_att\."),
    SqueezeExcite2d: re.compile(r"\.fc[12]\."),
}
"""Where a module's name ends in that of a tensor of it."""


def renamed(weights: Mapping[str, Tensor], network: nn.Module) -> Weights:
    """`weights` by the names of `network`, wherever they have another one there.

    - A first part that they have in another program, such as Lightning's `model.`, is left out where more
      tensors are then of a name and shape of the network's: half of those that have that part, or of its own.
    - `bam1.`, `bam2.` … of BAM's authors, who call their BAMs between the stages, become those of the
      network's BAMs in their order; `linear` becomes `fc`, and `shortcut` `downsample`.
    - So do other BAMs, such as the catalog's `layer1.3` and `insert_bam`'s `layer1.bam`, and
      squeeze-excitation, its `layer1.0.se` and `insert_se`'s `layer1.0.bn2_se`, where as many of the weights'
      as of the network's have no counterpart of their name, each in the same part as its own.

    Raises:
        ValueError: two first parts fit alike, as two networks in one file do.
    """
    own = network.state_dict()
    found = without_first_part(weights, {name: tensor.shape for name, tensor in own.items()})
    bams = _of(BAM, network)
    heads = CLASSIFIER | {f"bam{number}": name for number, name in enumerate(bams, start=1)}
    places: dict[str, str] = {}
    for kind, inside in INSIDE.items():
        theirs_of = {inside.split(name)[0] for name in found if inside.search(name)}
        places |= _counterparts(theirs_of - heads.keys(), {*_of(kind, network)})
    result: dict[str, Tensor] = {}
    for name, tensor in found.items():
        head, dot, rest = name.partition(".")
        others = [f"{heads.get(head, head)}{dot}{rest}".replace(*PROJECTION), f"module.{name}"]
        others += [name.replace(one, place, 1) for one, place in places.items() if name.startswith(f"{one}.")]
        theirs = [name] if name in own else [other for other in others if other in own and other not in found]
        result[theirs[0] if theirs else name] = tensor
    return found.named(result)


def _of(kind: type[nn.Module], network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


def _counterparts(theirs: set[str], own: set[str]) -> dict[str, str]:
    """The network's names of the modules that the weights have by other ones; none where that is not sure."""
    # By name on both sides, as files may have them so, with block 10 before block 2.
    pairs = dict(zip(sorted(theirs - own), sorted(own - theirs), strict=False))
    sure = len(theirs - own) == len(own - theirs) and all(_beside(*pair) for pair in pairs.items())
    return pairs if sure else {}


def _beside(one: str, other: str) -> bool:
    """Whether the module that one of these is a child of holds the other."""
    above = sorted((f"{name.rpartition('.')[0]}." for name in (one, other)), key=len)
    return above[1].startswith(above[0])


def without_first_part(weights: Mapping[str, Tensor], shapes: Mapping[str, Collection[int]]) -> Weights:
    """`weights` without the first part of the names that `shapes` do not have; raises as `renamed`."""
    given = weights if isinstance(weights, Weights) else Weights(weights)
    firsts = dict.fromkeys(name.partition(".")[0] + "." for name in weights if "." in name)
    fits = dict.fromkeys(("", *firsts), 0)
    for name, tensor in weights.items():
        first = name.partition(".")[0] + "."
        for left_out in {"", first} & fits.keys():
            fits[left_out] += shapes.get(name.removeprefix(left_out)) == tensor.shape
    best = max(fits, key=lambda first: fits[first])
    enough = min(len(shapes), sum(name.startswith(best) for name in weights)) / 2
    if best == "" or fits[best] == fits[""] or fits[best] < enough:
        return given
    if alike := [first for first in fits if fits[first] == fits[best] and first != best]:
        raise ValueError(
            f"the weights have two networks that fit, {best[:-1]} and {alike[0][:-1]}: give the tensors of "
            "one, by names without that"
        )
    return given.named({name.removeprefix(best): tensor for name, tensor in weights.items()})
