"""Other people's attention in a network becomes ours: the same function and weights, and any image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d
from attneck.surgery.others import Form, Kind, Ours, halves, is_of_bottle, kind_of
from attneck.surgery.recorded import recorded
from attneck.surgery.report import Change, state_tensors
from attneck.surgery.trace import check_unwrapped, is_hooked


@dataclass(frozen=True)
class Adoption:
    """What was adopted, and what became of the state dict's tensors."""

    network: str
    changes: tuple[Change, ...]
    """None, where all attention was ours already."""
    kept: tuple[str, ...]
    """State-dict names of the tensors that are as they were, value and name."""
    new: tuple[str, ...]
    """Of those made from theirs; none is random."""
    gone: tuple[str, ...]
    params: tuple[int, int]
    """How many parameters the network had, and has."""
    forms: Mapping[str, Form] = field(repr=False)
    """By the names of the layers that were adopted."""

    def converted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the network as it was, by the names and in the form that it has now.

        Tensors that are in our form already, or are no adopted layer's, stay as they are; so do those of
        another width.

        Raises:
            ValueError: no tensor of an adopted layer, in either form: the network would keep the weights that
                it has there.
        """
        if self.forms and not self.is_in(weights):
            layer = next(iter(self.forms))
            raise ValueError(
                f"these weights have nothing of {layer!r} or of another layer that was adopted: wanted a "
                f"state dict of {self.network}, by names without a first part such as module. (which "
                "attneck.models.renamed.renamed(weights, network) takes off)"
            )
        result = dict(weights)
        for name, form in self.forms.items():
            for theirs, own in form.names.items():
                given = result.get(f"{name}.{theirs}")
                if given is not None and (made := form.of(own, given)) is not None:
                    del result[f"{name}.{theirs}"]
                    result[f"{name}.{form.inside}{own}"] = made
        return result

    def is_in(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these weights have a tensor of an adopted layer, in its old form or in ours."""
        return any(
            f"{name}.{tensor}" in weights
            for name, form in self.forms.items()
            for theirs, own in form.names.items()
            for tensor in (theirs, f"{form.inside}{own}")
        )

    def __str__(self) -> str:
        if not self.changes:
            return f"{self.network}: its attention is attneck's already"
        before, after = self.params
        return "\n".join(
            [
                f"{self.network}, the same function as before:",
                *(f"  {change}" for change in self.changes),
                f"  tensors: {len(self.kept)} kept, {len(self.new)} made from the {len(self.gone)} gone",
                f"  parameters: {before:,} → {after:,} ({after - before:+,})",
            ]
        )


class Adopted(NamedTuple):
    """The model, which is the one that was given, and what was adopted in it."""

    model: nn.Module
    report: Adoption


@recorded
def adopt(model: nn.Module) -> Adopted:
    """Make other implementations' attention inside `model` ours, in place; its function stays.

    Results, gradients and the statistics of BatchNorms are those of the original, on the maps that it was
    made for. Other maps work from then on, by resampled tables, in memory linear in the map.

    - timm's `BottleneckAttn` → `MHSA2d`. It does not scale the position term, so the tables take √e. Where
      its queries are narrower than its values (eca_botnext26ts_256), they, the keys and the tables are filled
      up with zeros. These stay zero in training, as their gradients are zero.
    - bottleneck-transformer-pytorch's `Attention` → `MHSA2d`, relative or absolute. In a `BottleBlock` the
      pool after it becomes its stride; a `BottleStack` no longer asks for one size of map.
    - the authors' `BAM` → `BAM`, around the very layers that it had. On maps that are not square they differ:
      ours pools the whole map, theirs its first H columns, or fails.

    Projections and all that BAM has stay the parameters that they were. Tables that take a factor are new
    ones, so make the optimiser afterwards. All else is left alone, squeeze-and-excitation among it, and so
    is what has been adopted before.

    Args:
        model: any module that has them inside, of timm, torchvision or your own, on any device.

    Raises:
        ValueError: nothing to adopt, and no attention of ours either; attention that ours cannot stand for
            exactly, by its name and with the reason; hooks, which would be lost; a model in a wrapper. The
            model is as it was then.
    """
    check_unwrapped(model)
    network, modules = type(model).__name__, dict(model.named_modules(remove_duplicate=False))
    found = {
        name: (module, kind) for name, module in modules.items() if (kind := kind_of(module)) is not None
    }
    if not found and not any(isinstance(module, MHSA2d | BAM) for module in modules.values()):
        raise ValueError(
            f"no attention to adopt in this {network}: looked for timm's BottleneckAttn, bottleneck-"
            "transformer-pytorch's Attention and the BAM of its authors; attend puts in new layers"
        )
    pooled = _before_pools(modules)
    ours: dict[nn.Module, Ours] = {}
    for name, (module, kind) in found.items():
        if not name:
            raise ValueError(
                f"the model itself is {kind.of}, and nothing can take its place: give the network that it is "
                "in, or torch.nn.Sequential(it)"
            )
        try:
            ours[module] = ours.get(module) or kind.convert(module, module in pooled)
        except ValueError as error:
            raise ValueError(f"{name!r}, {kind.of}, cannot be adopted: {error}") from error
    _check_hooks(found, ours, pooled)
    before, params = state_tensors(model), _parameters(model)
    for name, (module, _) in found.items():
        model.set_submodule(name, ours[module].module)
    for module, block in pooled.items():
        if isinstance(layer := ours[module].layer, MHSA2d) and layer.stride == 2:
            block.net[4] = nn.Identity()
    for module in modules.values():
        if is_of_bottle(module, "BottleStack"):
            # Of its one child, `net`: what is left without the check of the map's size.
            module.__class__ = nn.Sequential
    after = state_tensors(model)
    kept = dict.fromkeys(name for name, tensor in before.items() if after.get(name) is tensor)
    report = Adoption(
        network,
        tuple(_change(name, ours[module], kind.of) for name, (module, kind) in found.items()),
        kept=tuple(kept),
        new=tuple(name for name in after if name not in kept),
        gone=tuple(name for name in before if name not in kept),
        params=(params, _parameters(model)),
        forms={name: form for name, (module, _) in found.items() if (form := ours[module].form) is not None},
    )
    return Adopted(model, report)


def _check_hooks(
    found: Mapping[str, tuple[nn.Module, Kind]],
    ours: Mapping[nn.Module, Ours],
    pooled: Mapping[nn.Module, Any],
) -> None:
    """ValueError where a module that is not in ours, or a pool that ours stands for, has hooks."""
    for name, (module, kind) in found.items():
        stay = {*ours[module].module.modules()}
        gone = [part for part in module.modules() if part not in stay]
        gone += [pooled[module].net[4]] if module in pooled else []
        if hooked := next((part for part in gone if is_hooked(part)), None):
            raise ValueError(
                f"{name!r}, {kind.of}, cannot be adopted: its {type(hooked).__name__} has hooks, and they "
                "would be lost with it: remove them first, and register them on the new layer"
            )


def _before_pools(modules: Mapping[str, nn.Module]) -> dict[nn.Module, Any]:
    """The attention of BottleBlocks that a 2×2 average pool follows, and its block."""
    times, found = Counter(modules.values()), {}
    for module in modules.values():
        if is_of_bottle(module, "BottleBlock"):
            block: Any = module
            attention, pool = block.net[3:5]
            if is_of_bottle(attention, "Attention") and times[attention] == 1 and halves(pool):
                found[attention] = block
    return found


def _change(name: str, ours: Ours, was: str) -> Change:
    layer = ours.layer
    inside = f".{ours.form.inside.rstrip('.')}" if ours.form is not None and ours.form.inside else ""
    if isinstance(layer, BAM):
        return Change(name, "BAM", layer.channels, None, replaced=was)
    return Change(f"{name}{inside}", "MHSA2d", layer.channels, layer.map_size, layer.stride, was)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
