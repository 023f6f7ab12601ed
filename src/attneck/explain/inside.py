"""What a module of a network computes, as boxes and arrows: a residual block, a stage, an attention layer.

It is read off a forward pass, so it is what runs, with the sizes that there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attneck.errors import suggestion
from attneck.explain.stages import ATTENTION
from attneck.layers import BAM, MHSA2d
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace, trace

MOST = 60
"""Boxes that can be read in one picture."""
VIEWS = {
    *("permute", "transpose", "flatten", "unflatten", "reshape", "view", "movedim", "contiguous", "clone"),
    *("unbind", "split", "chunk", "__getitem__", "squeeze", "unsqueeze", "expand", "expand_as", "narrow"),
    *("to", "float", "type", "type_as", "detach", "detach_"),
}
"""Functions that only say how numbers lie, or of what type they are."""
POINTWISE = {
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "dropout2d"),
    *(
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "silu_",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "mish",
        "elu",
    ),
    *("prelu", "tanh", "sigmoid", "sigmoid_", "hardsigmoid", "softmax"),
}
"""Functions that leave a map as large as it is: they stand in the box of what they follow."""
SIGNS = {
    **dict.fromkeys(("add", "add_", "__add__", "__iadd__", "__radd__"), "+"),
    **dict.fromkeys(("mul", "mul_", "__mul__", "__imul__", "__rmul__"), "×"),
    "cat": "side by side",
    "mean": "mean over the map",
    "adaptive_avg_pool2d": "mean over the map",
    "addcmul": "x + x · weights",
    "scaled_dot_product_attention": "softmax(q · k / √d) v",
}
PRODUCTS = {
    ("q",): ("q · r", "content-position"),
    ("k", "q"): ("q · k", "content-content"),
    ("k + r", "q"): ("q · (k + r)", "content and position"),
    ("v",): ("weights · v",),
}
"""The products of self-attention (BoTNet, Figure 4), by what goes into them."""

WITH_TABLES = {"q · r", "k + r"}
"""Boxes that the position tables go into."""


@dataclass
class Box:
    """One thing that is computed.

    Attributes:
        words: its lines, the first one its name.
        shape: of what leaves it, without the batch.
        inputs: the boxes before it, by number, and what comes from each, "q" say.
        attention: its short name, if it is such a layer.
    """

    words: list[str]
    shape: str
    inputs: list[tuple[int, str]]
    attention: str = ""


def inside(model: nn.Module, name: str, image_size: int | tuple[int, int] | None = None) -> list[Box]:
    """The boxes of the module called `name`, in the order in which they run; the first are what goes in.

    Attention inside of it is one box; give its own name to see what is in that.

    Args:
        model: a network of the caller's own, whose attention is set to ordinary operators.
        name: as in `model.named_modules()`.
        image_size: as `attneck.surgery.trace.trace` takes it.

    Raises:
        ValueError: no such module; one that does not run, or is one box; more than `MOST`; and as `trace`.
    """
    names = [known for known, _ in model.named_modules() if known]
    if name not in names:
        tops = ", ".join(known for known in names if "." not in known)
        raise ValueError(
            f"no module is called {name!r}{suggestion(name, names)}; this network has {tops}, and theirs"
        )
    for module in model.modules():
        if isinstance(module, BAM | MHSA2d):
            module.backend = "plain"  # what it computes, and not how fast
    seen = trace(model, image_size)
    call = next((step for step in seen.calls() if step.name == name), None)
    if call is None or not call.inputs:
        raise ValueError(f"{name!r} takes no map in a forward pass of its own: choose a module that does")
    boxes = _Drawing(seen, call).whole()
    if sum(bool(box.inputs) for box in boxes) < 2:
        around = (
            f"the block that it is in, {name.rpartition('.')[0]}" if "." in name else "a block of the network"
        )
        raise ValueError(f"{name!r} is one operation: choose {around}")
    if len(boxes) > MOST:
        parts = [f"{name}.{key}" for key, _ in model.get_submodule(name).named_children()]
        raise ValueError(f"{name!r} has {len(boxes)} boxes, over {MOST}: choose a part, {', '.join(parts)}")
    return boxes


class _Drawing:
    """The boxes of a call, which its steps add one after the other; before them is what goes into it."""

    def __init__(self, seen: Trace, call: Step) -> None:
        self.seen, self.call = seen, call
        self.steps = list(_leaves(call))
        self.uses = Counter(
            number
            for step in self.steps
            if set(step.outputs) - set(step.inputs)
            for number in set(step.inputs)
        )
        maps = [number for number in dict.fromkeys(call.inputs) if number in self.uses] or [call.inputs[0]]
        self.boxes = [Box(["input"], _shape(seen, number), []) for number in maps]
        self.made = {number: (box, "") for box, number in enumerate(maps)}
        """Of each number the box that it comes from, and its part in self-attention: q, k or v."""
        self.alone: set[int] = set()
        """Numbers that are all of what leaves their box."""

    def whole(self) -> list[Box]:
        """All of them."""
        for step in self.steps:
            known = list(dict.fromkeys(number for number in step.inputs if number in self.made))
            new = [number for number in step.outputs if number not in step.inputs]
            if known and new:
                self._add(step, known, new)
        return self.boxes

    def _add(self, step: Step, known: list[int], new: list[int]) -> None:
        """A step that makes the numbers `new` of those that are `known`: it has a box, or stands in one."""
        view = step.module is None and step.name in VIEWS
        follows = len(known) == 1 and known[0] in self.alone and self.uses[known[0]] == 1
        box, part = self.made[known[0]]
        parts = [part] * len(new)
        if view:
            positional = step.arguments[0]
            if positional and positional[0].shape != self.seen.shapes[known[0]]:
                return  # it is the weights' view, as large as a map of the input's
            if _is_qkv(step):
                parts = ["q", "k", "v"] if len(new) == 3 else ["q", "v"]
        elif follows and _is_pointwise(step):
            line = _words(step, self.call, [])[0] if step.module is None else type(step.module).__name__
            first, *more = self.boxes[box].words
            self.boxes[box].words = [first, ", ".join([*more, line])]
            self.boxes[box].shape = _shape(self.seen, new[0])
        else:
            box, part = self._box(step, known, new, part)
            parts = [part] * len(new)
        self.made |= {number: (box, role) for number, role in zip(new, parts, strict=True)}
        if len(new) == 1 and (follows or not view):
            self.alone.add(new[0])

    def _box(self, step: Step, known: list[int], new: list[int], part: str) -> tuple[int, str]:
        """A box of its own, by its number, and the part in self-attention of what leaves it."""
        inputs = list(dict.fromkeys(self.made[number] for number in known))
        words = _words(step, self.call, [role for _, role in inputs])
        leaves = part * (words == ["scaled"])
        if words == ["+"] and len(inputs) < len(known):
            words = ["sum of its parts"]  # logits of rows and of columns, by one product
        elif words == ["+"] and len(known) == 1:
            leaves = f"{part} + r" * (part == "k")
            words = ["k + r" if part == "k" else "shifted"]
        kind = "" if step.module is None else ATTENTION.get(type(step.module), "")
        if isinstance(step.module, MHSA2d) and step.module.stride > 1:  # the pool is a step of its own
            before = self._put(Box(words, _shape(self.seen, known[0]), inputs, kind))
            words, inputs, kind = ["mean of 2 × 2"], [(before, "")], ""
        if words[0] in WITH_TABLES:
            tables = self._put(Box(["r = R_h + R_w"], _tables(self.call.module), []))
            inputs.append((tables, "r"))
        return self._put(Box(words, _shape(self.seen, new[0]), inputs, kind)), leaves

    def _put(self, box: Box) -> int:
        self.boxes.append(box)
        return len(self.boxes) - 1


def _leaves(step: Step) -> Iterator[Step]:
    """What is drawn of it, in order: functions, attention, and modules without others in them."""
    for part in step.steps:
        attention = type(part.module) in ATTENTION
        modules = any(inner.module is not None for inner in part.steps)
        if part.module is None or attention or not modules:
            yield part
        else:
            yield from _leaves(part)


def _is_qkv(step: Step) -> bool:
    """Whether it takes self-attention's three projections apart."""
    return step.name == "unbind" and step.owner is not None and type(step.owner.module) is MHSA2d


def _is_pointwise(step: Step) -> bool:
    functions = [step.name] if step.module is None else [part.name for part in step.steps]
    return bool(functions) and all(name in POINTWISE | VIEWS for name in functions)


def _words(step: Step, call: Step, roles: list[str]) -> list[str]:
    """A box's lines, before what follows it is added."""
    module: Any = step.module
    if module is None:
        return _function(step, roles)
    name = step.name.removeprefix(f"{call.name}.")
    if isinstance(call.module, MHSA2d) and module is call.module.qkv:
        parts = "W_Q, W_K, W_V" if call.module.content else "W_Q, W_V"
        return [f"{name}: 1 × 1, {module.in_channels} → {module.out_channels}", parts]
    if isinstance(module, nn.Conv2d):
        words = [_sides(module.kernel_size), f"{module.in_channels} → {module.out_channels}"]
        for what in ("stride", "dilation", "groups"):
            value = getattr(module, what)
            if value not in (1, (1, 1)):
                words.append(f"{what} {value[0] if isinstance(value, tuple) else value}")
    elif isinstance(module, nn.Linear):
        words = [f"{module.in_features} → {module.out_features}"]
    elif isinstance(module, MHSA2d):
        words = ["MHSA", f"{module.heads} heads"]
    else:
        words = [ATTENTION.get(type(module), type(module).__name__)]
    return [f"{name}: {', '.join(words)}"]


def _function(step: Step, roles: list[str]) -> list[str]:
    positional, named = step.arguments

    def given(place: int, name: str) -> Any:
        return positional[place] if len(positional) > place else named.get(name)

    if step.name == "avg_pool2d":
        return [f"mean of {_sides(given(1, 'kernel_size'))}"]
    if step.name == "adaptive_avg_pool2d" and (size := given(1, "output_size")) not in (1, (1, 1), [1, 1]):
        return [f"means of {_sides(size)} parts"]
    over_second = step.name == "mean" and given(1, "dim") in (1, -3, (1,), (-3,), [1], [-3])
    if over_second and given(0, "input").ndim == 4:  # of tokens [B, N, C] it is one over the places
        return ["mean over the channels"]
    if step.name == "scaled_dot_product_attention" and given(3, "attn_mask") is not None:
        return ["softmax(q · k / √d + bias) v"]
    if step.name == "matmul" and (product := PRODUCTS.get(tuple(sorted(filter(None, roles))))):
        return [*product]
    word = SIGNS.get(step.name, step.name.replace("_", " ").strip())
    return ["scaled" if word == "×" and len(step.inputs) == 1 else word]


def _sides(size: int | Sequence[int]) -> str:
    return " × ".join(map(str, (size, size) if isinstance(size, int) else size))


def _tables(layer: Any) -> str:
    """The position tables of self-attention: what is learnt for rows and for columns."""
    tables = [table for name, table in layer.named_parameters() if name.startswith(("rel_", "abs_"))]
    return " + ".join(" × ".join(map(str, table.shape)) for table in tables)


def _shape(seen: Trace, number: int) -> str:
    """Of one image: what is in the batch beside images, heads say, is counted too."""
    first, *rest = seen.shapes[number]
    more = first // seen.shapes[0][0]
    return " × ".join(map(str, [more, *rest] if more > 1 else rest))
