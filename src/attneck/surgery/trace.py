"""What a network runs, in which order and on which maps: one forward pass that computes nothing.

Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attneck.checks import sides
from attneck.layers.meta import check_module, likely_channels, meta_copy, shapes_alone
from attneck.surgery.axes import channel_axes
from attneck.surgery.step import Step


@dataclass(eq=False)
class Trace:
    """A network's forward pass on one image of `image_size`, (height, width) in pixels."""

    skeleton: nn.Module
    """The copy without storage that was run."""
    image_size: tuple[int, int]
    image_channels: int
    steps: list[Step]
    """All of them, as they began; the first is the network's own."""
    shapes: list[torch.Size]
    """By number; the image is number 0."""
    dtypes: list[torch.dtype]
    """By number."""
    makers: dict[int, Step]
    """The function, or the module that no function was seen in, that gave each number."""
    makes_tensors: bool
    """Whether its forward makes tensors that have to be without storage too."""

    def running(self) -> AbstractContextManager[None]:
        """What the skeleton, or a part of it, is run in."""
        return shapes_alone(makes_tensors=self.makes_tensors)

    def calls(self) -> Iterator[Step]:
        """The module calls."""
        return (step for step in self.steps if step.module is not None)

    def level(self, number: int) -> int | None:
        """How often the image's sides were halved to make this map [B, C, H, W]; None for what is none.

        A map of 1×1 is one where a convolution or a pooling by maxima made it of one of up to 3×3, or of one
        that its window leaves a part of out (4×4 by 3×3 with a stride of 2); else it is a mean. A stride
        halves it once more, though nothing is left to see of that.
        """
        return self._levels[number]

    @cached_property
    def axes(self) -> list[int | None]:
        """Of each number the axis of its channels; None where that was not to be followed."""
        return channel_axes(self.shapes, self.makers)

    @cached_property
    def _levels(self) -> list[int | None]:
        found: list[int | None] = []
        for number, shape in enumerate(self.shapes):
            if len(shape) != 4 or self.axes[number] not in (1, None):
                found.append(None)
            elif max(shape[2:]) > 1:
                found.append(halvings(self.image_size, (shape[2], shape[3])))
            else:
                found.append(self._level_of_a_point(number, found))
        return found

    def _level_of_a_point(self, number: int, found: list[int | None]) -> int | None:
        """Of a map of 1×1, from the levels of those before."""
        maker = self.makers.get(number)
        if maker is None:
            return None
        wide = [n for n in maker.inputs if len(self.shapes[n]) == 4 and max(self.shapes[n][2:]) > 1]
        last = max((level for n in wide or maker.inputs if (level := found[n]) is not None), default=None)
        if last is None or not wide:
            return None if last is None else last + maker.strides()
        if not (maker.is_convolution() or maker.is_max_pool()):
            return None
        longest, window = [max(self.shapes[n][2:]) for n in wide], max(maker.kernel())
        return last + 1 if all(side <= 3 or side > window for side in longest) else None

    def coarsest(self, numbers: tuple[int, ...]) -> int | None:
        """The highest level among them; None if no one is a map."""
        return max((level for n in numbers if (level := self.level(n)) is not None), default=None)

    def is_made_without(self, results: tuple[int, ...], number: int) -> bool:
        """Whether anything of the image comes into the results on a way around that number."""
        open_, known = [*results], {number, *results}
        while open_:
            if (each := open_.pop()) == 0:
                return True
            maker = self.makers.get(each)
            fresh = set(maker.inputs if maker is not None else ()) - known
            known |= fresh
            open_ += fresh
        return False

    def called(self, step: Step) -> str:
        """What a message calls a step."""
        if step.module is not None:
            return repr(step.name) if step.name else "the network"
        return f"{step.name} in {self.called(step.owner)}" if step.owner else step.name

    def times_called(self, module: nn.Module | None) -> int:
        return sum(step.module is module for step in self.calls())


def halvings(image_size: tuple[int, int], map_size: tuple[int, int]) -> int | None:
    """How often both sides were halved; None where the two sides tell of no one number.

    Each time a side is rounded up or down, and windows without padding take a little more off. Where up and
    down tell of two numbers it is up, as in nearly all networks: 33, 17, 9, 5, 3, 2.
    """

    def off(times: int) -> tuple[float, float]:
        """By how much the map is outside of what halving makes, and how far from rounding up."""
        outside, from_up = 0.0, 0.0
        for image, side in zip(image_size, map_size, strict=True):
            low, high = max(1, math.floor(image / 2**times)), math.ceil(image / 2**times)
            outside = max(outside, math.log2(low / side), math.log2(side / high))
            from_up = max(from_up, abs(math.log2(high / side)))
        return outside, from_up

    best = min(range(-8, max(image_size).bit_length() + 1), key=off)  # below 0: a map larger than the image
    return best if off(best)[0] <= 0.5 else None


WRAPPERS = {
    *("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"),
    *("OptimizedModule", "ScriptModule"),
}
"""torch's classes around or instead of a module's own: parallel, sharded, compiled and scripted ones."""


def check_unwrapped(model: nn.Module) -> None:
    """ValueError for what is no model, and for one that is one of WRAPPERS, or has one inside."""
    check_module(model)
    for name, module in model.named_modules():
        if WRAPPERS & {kind.__name__ for kind in type(module).__mro__}:
            raise ValueError(
                f"{f'its {name!r}' if name else 'the model'} is wrapped in {type(module).__name__}; give the "
                "model itself, and wrap, shard or compile it after the surgery"
            )


def is_pefts(module: nn.Module) -> bool:
    """Whether it is of PEFT: a model with adapters, or what stands for a module until they are merged."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def names_of(network: nn.Module, module: nn.Module) -> list[str]:
    """All dotted names that a module has in a network."""
    return [name for name, each in network.named_modules(remove_duplicate=False) if each is module]


COMPUTES_WEIGHTS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")
"""Of torch, where hooks come from that only compute the weights of their own module."""


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody's hook listens to its calls or gradients; a pruning or weight norm does not."""
    tables = (
        *(module._forward_pre_hooks, module._forward_hooks),
        *(module._backward_pre_hooks, module._backward_hooks),
    )
    kinds = [type(hook).__mro__ for table in tables for hook in table.values()]
    return any(all(kind.__module__ not in COMPUTES_WEIGHTS for kind in mro) for mro in kinds)


def trace(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Trace:
    """Run a copy of `model` in eval mode, without storage and without hooks, and write down what it calls.

    Args:
        model: takes one batch of images; stays as it is.
        image_size: of the image, a side or (height, width) in pixels; None takes timm's `pretrained_cfg`,
            else 224.

    Raises:
        ValueError: what is no model, an `image_size` that is none, a model in a wrapper, one of clips, or one
            that does not run on such an image on the meta device.
    """
    check_unwrapped(model)
    size = _image_size(model, image_size)
    skeleton = meta_copy(model).eval()
    module: Any
    for module in skeleton.modules():  # timm's checkpointing calls a stage's blocks, and not the stage
        if getattr(module, "grad_checkpointing", False) is True:
            module.grad_checkpointing = False
    dtype = next((p.dtype for p in skeleton.parameters() if p.is_floating_point()), None)
    if dtype is None:
        raise ValueError(f"{type(model).__name__} has no parameters: it is no network that attention fits in")
    failures = []
    for channels, makes_tensors in product(likely_channels(skeleton), (False, True)):
        recorder = _Recorder(skeleton)
        image = torch.empty(2, channels, *size, device="meta", dtype=dtype)
        try:
            with shapes_alone(makes_tensors=makes_tensors), recorder:
                skeleton(image)
        except Exception as error:
            if makes_tensors:
                failures.append(f"{channels} channels: {type(error).__name__}: {error}".splitlines()[0])
            continue
        finally:
            recorder.close()
        return Trace(
            skeleton,
            size,
            channels,
            recorder.steps,
            recorder.shapes,
            recorder.dtypes,
            recorder.makers,
            makes_tensors,
        )
    if any(isinstance(module, nn.Conv3d) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} works on clips [B, C, T, H, W]; wanted a network of images [B, C, H, W]"
        )
    raise ValueError(
        f"{type(model).__name__} does not run on an image of {size[0]}×{size[1]} on the meta device, where "
        f"places are looked for ({'; '.join(failures)}); give the image_size that it takes, or of a detector "
        "the network in its backbone (of torchvision's: model.backbone.body)"
    )


def _image_size(model: nn.Module, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        image_size = tuple(config.get("input_size", (3, 224, 224))[1:])
    return sides("image_size", image_size)


class _Recorder(TorchFunctionMode):
    """Writes down module calls, by hooks, and what functions are called in between."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.shapes: list[torch.Size] = []
        self.dtypes: list[torch.dtype] = []
        self.makers: dict[int, Step] = {}
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # else another tensor might get the id of one that is gone
        self._open: list[Step] = []
        self._clock = 0
        self._hooks = []
        for name, module in model.named_modules():
            self._hooks += [
                module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True),
                module.register_forward_hook(self._leave),
            ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = self._known(args, kwargs)
        # A norm on the meta device is most of the time that a pass takes, and only its shape is wanted.
        result = torch.empty_like(args[0]) if func is F.batch_norm else func(*args, **kwargs)
        if inputs:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if made:
                step = self._begin(getattr(func, "__name__", str(func)), None, inputs)
                step.arguments = (args, kwargs)
                step.outputs = tuple(self._number(tensor, step) for tensor in made)
                step.end = self._tick()
        return result

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.steps:  # the network's own call
                for leaf in tree_leaves((args, kwargs)):
                    if isinstance(leaf, Tensor):
                        self._number(leaf)
            step = self._begin(name, module, self._known(args, kwargs))
            step.arguments = (args, kwargs)
            self._open.append(step)

        return hook

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        step = self._open.pop()
        step.result = result
        numbers = []
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                # What no function was seen to make, an autograd.Function's result, is the module's.
                known = self._numbers.get(id(leaf))
                numbers.append(self._number(leaf, step) if known is None else known)
        step.outputs, step.end = tuple(numbers), self._tick()
        if type(result) in (list, tuple):  # noted now: a list may get longer
            step.parts = tuple(self._numbers[id(x)] if isinstance(x, Tensor) else None for x in result)

    def _begin(self, name: str, module: nn.Module | None, inputs: tuple[int, ...]) -> Step:
        step = Step(name, module, self._open[-1] if self._open else None, self._tick(), inputs)
        self.steps.append(step)
        if step.owner is not None:
            step.owner.steps.append(step)
        return step

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _number(self, tensor: Tensor, maker: Step | None = None) -> int:
        number = len(self.shapes)
        self.shapes.append(tensor.shape)
        self.dtypes.append(tensor.dtype)
        self._numbers[id(tensor)] = number
        self._alive.append(tensor)
        if maker is not None:
            self.makers[number] = maker
        return number

    def _known(self, args: Any, kwargs: Any) -> tuple[int, ...]:
        """The numbers of what comes from the image."""
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return tuple(self._numbers[id(leaf)] for leaf in leaves if id(leaf) in self._numbers)
