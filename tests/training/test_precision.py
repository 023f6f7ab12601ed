"""bfloat16 where the processor multiplies none: float32 products of rounded operands, rounded again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

import attneck
from attneck.training import precision as module
from attneck.training.precision import PRODUCTS, Rounded, precision
from attneck.training.recipe_file import load_recipe
from attneck.training.scoring import scored

CPU = torch.device("cpu")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES: list[tuple[Callable[..., Any], list[Tensor]]] = [
    (F.conv1d, [normal(2, 3, 9), normal(4, 3, 3), normal(4)]),
    (F.conv2d, [normal(2, 3, 9, 9), normal(4, 3, 3, 3), normal(4)]),
    (F.conv3d, [normal(2, 3, 5, 5, 5), normal(4, 3, 3, 3, 3)]),
    (F.conv_transpose1d, [normal(2, 3, 9), normal(3, 4, 3)]),
    (F.conv_transpose2d, [normal(2, 3, 9, 9), normal(3, 4, 3, 3)]),
    (F.conv_transpose3d, [normal(2, 3, 5, 5, 5), normal(3, 4, 3, 3, 3)]),
    (F.linear, [normal(5, 6), normal(7, 6), normal(7)]),
    (torch.matmul, [normal(2, 5, 6), normal(6, 7)]),
    (Tensor.matmul, [normal(2, 5, 6), normal(6, 7)]),
    (Tensor.__matmul__, [normal(5, 6), normal(6, 7)]),
    (Tensor.__rmatmul__, [normal(6, 7), normal(5, 6)]),
    (torch.mm, [normal(5, 6), normal(6, 7)]),
    (Tensor.mm, [normal(5, 6), normal(6, 7)]),
    (torch.bmm, [normal(2, 5, 6), normal(2, 6, 7)]),
    (Tensor.bmm, [normal(2, 5, 6), normal(2, 6, 7)]),
    (torch.addmm, [normal(5, 7), normal(5, 6), normal(6, 7)]),
    (Tensor.addmm, [normal(5, 7), normal(5, 6), normal(6, 7)]),
    (torch.baddbmm, [normal(2, 5, 7), normal(2, 5, 6), normal(2, 6, 7)]),
    (Tensor.baddbmm, [normal(2, 5, 7), normal(2, 5, 6), normal(2, 6, 7)]),
    (F.scaled_dot_product_attention, [normal(2, 2, 5, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8)]),
    (lambda a, b: torch.einsum("bik,bkj->bij", a, b), [normal(2, 5, 6), normal(2, 6, 7)]),
]


def both(function: Callable[..., Any], tensors: list[Tensor], ours: bool) -> list[Tensor]:
    """The result and the gradients of what it was computed from."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        if ours:
            with Rounded():
                result = function(*leaves)
        else:
            result = function(*leaves)
    result.float().square().mean().backward()
    return [result.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


def test_every_product_has_a_case() -> None:
    assert PRODUCTS - {function for function, _ in CASES} == {torch.einsum}


@pytest.mark.parametrize(("function", "tensors"), CASES)
def test_a_product_is_pytorchs_to_its_rounding(function: Callable[..., Any], tensors: list[Tensor]) -> None:
    """And not float32's: it differs from that by the rounding of the operands."""
    theirs, ours = both(function, tensors, ours=False), both(function, tensors, ours=True)
    exact = function(*[x.double() for x in tensors])
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for got, wanted in zip(ours, theirs, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6 * float(wanted.abs().max()))
    assert not torch.equal(ours[0].double(), exact.to(torch.bfloat16).double())


def test_operands_are_rounded_before_and_results_after() -> None:
    x, weight = normal(2, 3, 9, 9), normal(4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), Rounded():
        y = F.conv2d(x, weight)
    of_rounded = F.conv2d(x.bfloat16().double(), weight.bfloat16().double())
    torch.testing.assert_close(y.double(), of_rounded, rtol=2**-8, atol=1e-6)


def test_what_autocast_leaves_alone_is_left_alone() -> None:
    a, b = normal(4, 5), normal(5, 6)
    with Rounded():
        assert torch.equal(a @ b, torch.mm(a, b))  # no autocast, as in a layer that turns it off
        with torch.autocast("cpu", torch.bfloat16):
            assert (a.double() @ b.double()).dtype == torch.float64
            assert (
                torch.ones(2, 2, dtype=torch.long) @ torch.ones(2, 2, dtype=torch.long)
            ).dtype == torch.long
            assert (a + a).dtype == torch.float32


@pytest.mark.parametrize("slow", [True, False])
def test_a_recipe_has_it_where_the_processor_needs_it(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "emulated", lambda dtype: slow)
    half = load_recipe("imagenet-100")
    full = half.model_copy(update={"precision": "float32"})
    for recipe, modes in ((half, [Rounded] if slow else []), (full, [])):
        with precision(recipe, CPU):
            assert torch.is_autocast_enabled("cpu") == (recipe is half)
            assert [*map(type, _get_current_function_mode_stack())] == modes


@pytest.mark.parametrize("name", ["botnet26_thin", "resnet26_thin"])
def test_a_network_is_the_one_of_autocast(name: str) -> None:
    """Further from float32 than from PyTorch's bfloat16."""
    torch.manual_seed(0)
    network = attneck.create_model(name, num_classes=10, zero_init_last=False).eval()
    x = normal(2, 3, 64, 64)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = network(x).float()
        with Rounded():
            ours = network(x).float()
    assert (ours - theirs).norm() < 0.5 * (ours - exact).norm() < 0.02 * exact.norm()


def test_held_out_images_are_scored_at_it() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout())
    recipe = load_recipe("demo")

    def seen(one: torch.nn.Module) -> tuple[torch.dtype, bool, bool]:
        found = one(torch.ones(1, 3))
        return found.dtype, found.is_inference(), one.training

    for said, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        changed = recipe.model_copy(update={"precision": said})
        assert scored(seen, network.train(), changed, CPU) == (dtype, True, False)
