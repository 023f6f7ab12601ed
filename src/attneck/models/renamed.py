"""The names that other programs give to a network's tensors, and the network's own in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from attneck.layers import BAM
from attneck.models.weight_files import Weights

# Of residual networks for CIFAR that are not torchvision's, such as akamaster's and kuangliu's.
CLASSIFIER = {"linear": "fc"}
PROJECTION = (".shortcut.", ".downsample.")


def renamed(weights: Mapping[str, Tensor], network: nn.Module) -> Weights:
    """`weights` by the names of `network`, wherever they have another one there.

    - A first part that all of them have in another program, such as Lightning's `model.`, is left out where
      half of the network's tensors or more, and more than without that, are then of its name and shape.
    - `bam1.`, `bam2.` … of BAM's authors, who call their BAMs between the stages, become those of the
      network's BAMs in their order; `linear` becomes `fc`, and `shortcut` `downsample`.

    Raises:
        ValueError: two first parts fit alike, as two networks in one file do.
    """
    own = network.state_dict()
    found = without_first_part(weights, {name: tensor.shape for name, tensor in own.items()})
    bams = [name for name, module in network.named_modules() if isinstance(module, BAM)]
    heads = CLASSIFIER | {f"bam{number}": name for number, name in enumerate(bams, start=1)}
    result = Weights()
    result.part = found.part
    for name, tensor in found.items():
        head, dot, rest = name.partition(".")
        others = (f"{heads.get(head, head)}{dot}{rest}".replace(*PROJECTION), f"module.{name}")
        theirs = [name] if name in own else [other for other in others if other in own and other not in found]
        result[theirs[0] if theirs else name] = tensor
    return result


def without_first_part(weights: Mapping[str, Tensor], shapes: Mapping[str, Collection[int]]) -> Weights:
    """`weights` without the first part of the names that `shapes` do not have; raises as `renamed`."""
    result = Weights(weights)
    result.part = getattr(weights, "part", "")
    firsts = dict.fromkeys(name.partition(".")[0] + "." for name in weights if "." in name)
    fits = {first: 0 for first in ("", *firsts)}
    for name, tensor in weights.items():
        first = name.partition(".")[0] + "."
        for left_out in {"", first} & fits.keys():
            fits[left_out] += shapes.get(name.removeprefix(left_out)) == tensor.shape
    best = max(fits, key=lambda first: fits[first])
    if best == "" or fits[best] == fits[""] or 2 * fits[best] < len(shapes):
        return result
    if alike := [first for first in fits if fits[first] == fits[best] and first != best]:
        raise ValueError(
            f"the weights have two networks that fit, {best[:-1]} and {alike[0][:-1]}: give the tensors of "
            "one, by names without that"
        )
    shorter = Weights((name.removeprefix(best), tensor) for name, tensor in weights.items())
    shorter.part = result.part
    return shorter
