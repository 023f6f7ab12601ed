"""Parameters and multiply-adds, exact to the integer, as the papers count them. Nothing is computed.

Letters: B batch, h heads, d head width, H×W map, N = H·W tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from attneck.checks import sides, whole
from attneck.errors import one_line
from attneck.layers.meta import check_module, likely_channels, meta_copy, shapes_alone
from attneck.layers.mhsa import TABLES, MHSA2d
from attneck.measure.kept import Counts
from attneck.models.origin import bare

COMPUTED = ("", "parametrizations.")
"""Where a table's parameters are: at its name, longer under pruning, or among what it is computed from."""
REST = "(rest)"
"""The stage that holds what belongs to no child of the model."""
PRODUCTS = {
    torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
    torch.ops.aten.addmv: lambda added, matrix, vector, **_: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda left, right, **_: 2 * math.prod(left),
    torch.ops.aten.addbmm: lambda added, left, right, **_: 2 * math.prod(left) * right[2],
    # nn.Bilinear: one side times the weights [out, left, right], and that times the other side.
    torch.ops.aten._trilinear: lambda left, weights, right, *_, **__: (
        2 * left[0] * weights[0] * (weights[1] + 1) * weights[2]
    ),
}
"""The FLOPs, by the shapes, of products that torch's counter has no formula for."""


def _products() -> dict[Any, Any]:
    """PRODUCTS, and torchvision's deformable convolution where that is loaded."""
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        return PRODUCTS
    return PRODUCTS | {
        torch.ops.torchvision.deform_conv2d: lambda x, weight, *_, out_shape, **__: (
            2 * math.prod(out_shape) * math.prod(weight[1:])
        )
    }


def count(
    model: nn.Module,
    image_size: int | tuple[int, int],
    *,
    stages: bool = False,
    image_channels: int | None = None,
) -> Counts:
    """What `model` costs on one image of `image_size`, a side or (height, width) in pixels.

    The image has `image_channels`; where None, those that `create_model` was asked for, else those of the
    first convolution, else 3.

    Runs a copy on the meta device in eval mode, without hooks: no weight is read or copied, the model stays
    as it is, and what a hook computes is not counted.
    Position tables that were made for another size are resampled, as in any forward pass, by a product which
    is counted too; build the model for `image_size` to have the papers' figures.

    Raises:
        ValueError: what is no model, or an `image_size` that is none or that the model does not run on; with
            `stages`, children that share parameters.
    """
    check_module(model)
    height, width = sides("image_size", image_size)
    if image_channels is not None:
        whole("image_channels", image_channels)
    model = meta_copy(model).eval()
    with _biases(model) as adds:
        by_name = madds_by_name(model, (height, width), image_channels)
    madds = by_name.get("Global", 0)
    root = type(model).__name__  # how the counter calls the model itself

    def of(module: nn.Module, name: str) -> int:
        """A module's multiply-adds: its own entry, or its children's where it is only a list of them."""
        if name in by_name:
            return by_name[name]
        return sum(of(child, f"{name}.{key}") for key, child in module.named_children())

    by_child = {name: of(child, f"{root}.{name}") for name, child in model.named_children()}
    names = {module: f"{root}.{name}" for name, module in model.named_modules()}
    classifiers = [of(module, names[module]) for module in _classifiers(model)]
    params, params_paper, params_weights = count_parameters(model)
    return Counts(
        params=params,
        params_paper=params_paper,
        params_weights=params_weights,
        madds=madds,
        madds_no_classifier=madds - sum(classifiers),
        bias_adds=sum(adds),
        stages=_stages(model, by_child, params, madds) if stages else None,
    )


def madds_by_name(
    model: nn.Module, image_size: tuple[int, int], channels: int | None = None
) -> dict[str, int]:
    """Multiply-adds of a model on the meta device, in evaluation mode, for an image of (height, width).

    By module, called by the model's class and its dotted name; "Global" is all of it.

    Args:
        channels: of the image; where None the first of `likely_channels` that the model runs on.

    Raises:
        ValueError: an image that it does not run on.
    """
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    dtype, failures = next(floats, torch.float32), []
    numbers = likely_channels(model) if channels is None else [channels]
    for number, makes_tensors in product(numbers, (False, True)):
        image = torch.empty(1, number, *image_size, device="meta", dtype=dtype)
        with (
            shapes_alone(makes_tensors=makes_tensors),  # first: the counter has hooks of its own
            FlopCounterMode(display=False, custom_mapping=_products()) as counter,
            _WithoutNorms(),
        ):
            try:
                model(image)
            except (RuntimeError, AssertionError, ValueError) as error:
                # Of a map that has become too small, say.
                if makes_tensors:
                    failures.append(f"{number} channels: {one_line(error, 100)}")
                continue
        return {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    height, width = image_size
    raise ValueError(
        f"{type(model).__name__} does not run on an image of {height}×{width} ({'; '.join(failures)}); give "
        "the image_size that it takes"
    )


def count_parameters(model: nn.Module) -> tuple[int, int, int]:
    """`params`, `params_paper` and `params_weights` of `Counts`, for any module."""
    norms_and_tables: set[int] = set()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            norms_and_tables.update(map(id, module.parameters(recurse=False)))
        elif isinstance(module, MHSA2d):
            tables = tuple(f"{way}{name}" for name in TABLES[module.position] for way in COMPUTED)
            norms_and_tables.update(
                id(one) for name, one in module.named_parameters() if name.startswith(tables)
            )
    total = paper = weights = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        paper += 0 if id(parameter) in norms_and_tables else size
        weights += 0 if name.endswith("bias") else size
    return total, paper, weights


class _WithoutNorms(TorchFunctionMode):
    """Leaves BatchNorm out: nothing of it is counted, and on meta it would take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


@contextmanager
def _biases(model: nn.Module) -> Iterator[list[int]]:
    """A list that every convolution with a bias adds its number of outputs to, in the model's last pass."""
    adds: list[int] = []

    def note(module: nn.Module, arguments: Any, out: Tensor) -> None:
        adds.append(out.numel())

    def anew(module: nn.Module, arguments: Any) -> None:
        adds.clear()

    convs = [module for module in model.modules() if isinstance(module, _ConvNd) and module.bias is not None]
    hooks = [model.register_forward_pre_hook(anew), *(conv.register_forward_hook(note) for conv in convs)]
    yield adds
    for hook in hooks:
        hook.remove()


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """What turns features into logits: timm's `get_classifier()`, else the child that is called so.

    A distilled network of timm's has two. In a wrapper it is that of the network inside.
    """
    model = bare(model)
    if callable(getter := getattr(model, "get_classifier", None)):
        found = getter()
        both = found if isinstance(found, tuple | list) else [found]
        return [one for one in both if isinstance(one, nn.Module)]
    named = {"fc", "classifier", "head", "heads"}
    return [child for name, child in model.named_children() if name in named][:1]


def check_apart(parts: Mapping[str, nn.Module]) -> None:
    """ValueError where two parts of a network have a parameter in common: what each costs cannot be told."""
    owner: dict[int, str] = {}
    for name, part in parts.items():
        for inside, parameter in part.named_parameters():
            if (first := owner.setdefault(id(parameter), name)) != name:
                raise ValueError(
                    f"{first} and {name} share parameters ({name}.{inside}), so what each stage costs cannot "
                    "be told: count the whole network"
                )


def _stages(
    model: nn.Module, madds: dict[str, int], all_params: int, all_madds: int
) -> dict[str, tuple[int, int]]:
    """(params, madds) of each child that has any, and of the rest; ValueError where two of them share one."""
    check_apart(dict(model.named_children()))
    stages = {
        name: (sum(parameter.numel() for parameter in child.parameters()), madds[name])
        for name, child in model.named_children()
    }
    known = [sum(column) for column in zip(*stages.values(), strict=True)] or [0, 0]
    stages[REST] = (all_params - known[0], all_madds - known[1])
    return {name: figures for name, figures in stages.items() if any(figures)}
