"""Python arguments that do not fit: ValueError or TypeError, one helpful line, before memory is asked for."""

import re
import time
from functools import partial

import pytest
import torch
from fault_cases import LONG, some
from torch import nn

import attneck
from attneck import surgery
from attneck.attention import relative_attention_2d
from attneck.attention.gate import gate
from attneck.errors import UserError
from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.measure import count
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import parse_recipe

NO_NUMBERS = [
    0,
    -1,
    2.5,
    True,
    "14",
    None,
    float("nan"),
    float("inf"),
    10**9,
    10**30,
    [3],
    {},
    object(),
    1 + 2j,
]
NO_SIDES = [
    *NO_NUMBERS[:-4],
    (0, 3),
    (3,),
    (1, 2, 3),
    (4, 4.0),
    ("4", "4"),
    (4, None),
    (10**9, 4),
    [],
    {},
    object(),
]
NO_CHOICES = ["nothing", "", 3, [], {}, b"sum", object()]


class Small(nn.Module):
    """A residual block after a stem: what surgery takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.layer = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu())


x, wide = torch.zeros(2, 8, 4, 4), torch.zeros(2, 32, 4, 4)
q, table = torch.zeros(2, 4, 16, 8), torch.zeros(7, 8)
c, p = torch.zeros(2, 8), torch.zeros(2, 1, 4, 4)

CASES, FIT = {}, {}
NONE = object()


def every(name, values, call, good=NONE):
    """A case for each value, and the one that does fit."""
    if good is not NONE:
        FIT[f"{name} {len(FIT)}"] = partial(call, good)
    for number, value in enumerate(values):
        CASES[f"{name} {number}: {str(value)[:20]}"] = partial(call, value)


for of, layer, good in (
    ("MHSA2d channels", lambda v: MHSA2d(v, 4, heads=1), 8),
    ("MHSA2d heads", lambda v: MHSA2d(8, 4, heads=v), 2),
    ("MHSA2d stride", lambda v: MHSA2d(8, 4, stride=v), 2),
    ("BAM channels", BAM, 32),
    ("BAM reduction", lambda v: BAM(32, reduction=v), 2),
    ("BAM dilation", lambda v: BAM(32, dilation=v), 2),
    ("SE channels", SqueezeExcite2d, 32),
    ("SE reduction", lambda v: SqueezeExcite2d(32, reduction=v), 4),
    ("NonLocal channels", NonLocal2d, 8),
    ("create_model in_chans", lambda v: attneck.create_model("cifar_resnet20", in_chans=v), 1),
):
    every(of, NO_NUMBERS, layer, good)
for of, call, good in (
    ("MHSA2d map_size", lambda v: MHSA2d(8, v), (3, 4)),
    ("count image_size", lambda v: count(Small(), v), 32),
):
    every(of, NO_SIDES, call, good)
for of, call, good in (
    ("create_model image_size", lambda v: attneck.create_model("cifar_resnet20", image_size=v), 48),
    ("create_model num_classes", lambda v: attneck.create_model("cifar_resnet20", num_classes=v), 3),
    ("attend image_size", lambda v: surgery.attend(Small(), image_size=v), 32),
    ("insert_se image_size", lambda v: surgery.insert_se(Small(), image_size=v, reduction=4), 32),
):  # None is the published one, 0 is no classifier
    every(of, [value for value in NO_SIDES if value not in (None, 0)], call, good)
for of, call, good in (
    ("MHSA2d position", lambda v: MHSA2d(8, 4, position=v), "absolute"),
    ("MHSA2d backend", lambda v: MHSA2d(8, 4, backend=v), "plain"),
    ("MHSA2d resample", lambda v: MHSA2d(8, 4, resample=v), "keep"),
    ("MHSA2d content", lambda v: MHSA2d(8, 4, content=v), False),
    ("BAM combine", lambda v: BAM(32, combine=v), "max"),
    ("BAM branches", lambda v: BAM(32, branches=v), "channel"),
    ("BAM variant", lambda v: BAM(32, variant=v), "official"),
    ("BAM start", lambda v: BAM(32, start=v), "identity"),
    ("BAM backend", lambda v: BAM(32, backend=v), "plain"),
    ("SE start", lambda v: SqueezeExcite2d(32, start=v), "identity"),
    ("gate combine", lambda v: gate(x, c, p, v), "max"),
    ("gate backend", lambda v: gate(x, c, p, backend=v), "plain"),
    ("relative backend", lambda v: relative_attention_2d(q, q, q, table, table, (4, 4), backend=v), "plain"),
    ("insert_se at", lambda v: surgery.insert_se(Small(), v), "blocks"),
    ("insert_bam at", lambda v: surgery.insert_bam(Small(), v), "blocks"),
    ("attend stage", lambda v: surgery.attend(Small(), "nothing" if v == 3 else v), -1),
    ("attend blocks", lambda v: surgery.attend(Small(), blocks=v), "all"),
    ("create_model name", attneck.create_model, "cifar_resnet20"),
    ("insert_attention_block kind", lambda v: surgery.insert_attention_block(Small(), v, -1), "bot"),
):
    every(of, NO_CHOICES, call, good)
every("attend stage", [5, -5, 1.0, True, None, (0,), 10**30], lambda v: surgery.attend(Small(), v), 0)
every(
    "attend blocks",
    [[5], [-3], [0.0], [True], [None], 0, None, {0}, "01"],
    lambda v: surgery.attend(Small(), blocks=v),
    [0],
)
every("attend heads", NO_NUMBERS, lambda v: surgery.attend(Small(), heads=v), 2)
every("insert_se reduction", NO_NUMBERS, lambda v: surgery.insert_se(Small(), reduction=v), 4)
every("insert_bam dilation", NO_NUMBERS, lambda v: surgery.insert_bam(Small(), "blocks", dilation=v), 2)
NO_MODELS = ["resnet50", None, 3, nn.Linear, Small, x, {}, lambda x: x]
for of, call, good in (
    ("count model", lambda v: count(v, 32), Small()),
    ("attend model", surgery.attend, Small()),
    ("insert_bam model", lambda v: surgery.insert_bam(v, "blocks"), Small()),
    ("insert_se model", surgery.insert_se, Small()),
):
    every(of, NO_MODELS, call, good)
NO_INPUTS = [
    None,
    "x",
    3,
    [[1.0]],
    x.int(),
    x.long(),
    x.bool(),
    x.to(torch.complex64),
    x[0],
    x[0, 0],
    x[None],
    x[:, :3],
]
for of, module in (
    ("MHSA2d", MHSA2d(8, 4)),
    ("MHSA2d absolute", MHSA2d(8, 4, position="absolute")),
    ("BAM", BAM(8, reduction=2).eval()),
    ("SE", SqueezeExcite2d(8, reduction=2)),
    ("NonLocal", NonLocal2d(8)),
):
    every(f"{of} input", [*NO_INPUTS, x[:, :, :0]] if of in ("BAM", "SE") else NO_INPUTS, module, x)
NO_TENSORS = ["q", 3, [1.0], q.int(), q.bool(), q.to("meta"), q[0], q[:, :, :3], q.to(torch.complex64)]
names = ("q", "k", "v", "rel_h", "rel_w")
for place, name in enumerate(names):
    for value in NO_TENSORS if name in ("k", "v") else [None, *NO_TENSORS]:
        if name == "q" and isinstance(value, torch.Tensor) and value.is_meta:
            continue
        given = [q, q, q, table, table]
        given[place] = value
        CASES[f"relative {name} {len(CASES)}"] = partial(relative_attention_2d, *given, (4, 4))
CASES["relative v None"] = partial(relative_attention_2d, q, q, None, table, table, (4, 4))
every("relative map_size", NO_SIDES, lambda v: relative_attention_2d(q, q, q, table, table, v), (4, 4))
every(
    "relative pool",
    ["yes", None, 1, 2.0],
    lambda v: relative_attention_2d(q, q, q, table, table, (4, 4), v),
    True,
)
every(
    "relative scale",
    ["1", None],
    lambda v: relative_attention_2d(q, q, q, table, table, (4, 4), scale=v),
    0.5,
)
for place, name in enumerate("xcp"):
    for value in ["x", 3, [1.0], x[0], x[:, :3], x[:, :, :0]]:
        given = [x, c, p]
        given[place] = value
        CASES[f"gate {name} {len(CASES)}"] = partial(gate, *given)
CASES["gate without branches"] = partial(gate, x, None, None)
CASES["gate on another device"] = partial(gate, x, c.to("meta"), p)
every(
    "recipe",
    [[], 3, "x", {"epochs": 0}, {3: 4}, {None: 1}, {"a": object()}],
    lambda v: parse_recipe(v, "here"),
    {},
)
every("Recipe", [{"epochs": 0}, {"epoch": 1}, {"model": 3}, {"batch": 10**12}], lambda v: Recipe(**v), {})
every("Run", [None, 3, [], b"\xff", "nowhere", "a\0b"], lambda v: attneck.Run(v).recipe)


@pytest.mark.parametrize("case", some(CASES, 70))
def test_an_argument_that_does_not_fit(case):
    started = time.process_time()
    with pytest.raises((ValueError, TypeError, UserError, OSError)) as error:
        CASES[case]()
    said = str(error.value)
    # Not by the call, which this file would have wrong.
    assert not re.search(r"unexpected keyword|positional argument|missing \d", said), said
    if not case.startswith("Recipe "):  # pydantic has lines of its own
        assert len(said.splitlines()) == 1
    assert 0 < len(said) <= 700
    assert not LONG or time.process_time() - started < 2


@pytest.mark.parametrize("case", FIT)
def test_one_that_fits(case):
    """What these cases have in common is not what is refused."""
    assert FIT[case]() is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "layer", [MHSA2d(8, 4), BAM(8, reduction=2).eval(), NonLocal2d(8)], ids=lambda m: type(m).__name__
)
def test_another_dtype_than_the_weights_is_refused_in_a_line(layer, dtype):
    """By torch, as of its own layers."""
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)double|float|type") as error:
        layer(x.to(dtype))
    assert len(str(error.value).splitlines()) == 1


def test_nothing_is_changed_by_surgery_that_is_refused():
    model = Small()
    before = [name for name, _ in model.named_modules()]
    for call in (
        lambda: surgery.attend(model, heads=0),
        lambda: surgery.insert_se(model, reduction=10**9),
        lambda: surgery.insert_bam(model, "blocks", dilation=0),
    ):
        with pytest.raises(ValueError, match="wanted a whole number"):
            call()
    assert [name for name, _ in model.named_modules()] == before
