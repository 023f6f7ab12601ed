"""FLOPs by PyTorch's own counter and nothing else: the operators count as the plain form does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attneck.attention import relative_attention_2d
from attneck.attention.cpu import choice
from attneck.attention.cpu.products import linear

ops = torch.ops.attneck


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def operands(device: str = "cpu") -> list[Tensor]:
    """q, k, v and tables of two images, three heads and a map of 5x4."""
    tokens = [torch.randn(2, 3, 20, 8, device=device) for _ in range(3)]
    return tokens + [torch.randn(2 * side - 1, 8, device=device) for side in (5, 4)]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("wanted", ["qkvhw", "q", "k", "v", "h", "qk", "vw", "hw", "kv"])
def test_forward_and_backward_are_counted_as_those_of_the_plain_form(
    pool: bool, content: bool, wanted: str
) -> None:
    if not content and wanted == "k":
        pytest.skip("nothing to differentiate")
    q, k, v, rel_h, rel_w = (
        tensor.requires_grad_(letter in wanted) for letter, tensor in zip("qkvhw", operands(), strict=True)
    )

    def run(backend: str, backward: bool) -> Callable[[], object]:
        def step() -> None:
            out = relative_attention_2d(q, k if content else None, v, rel_h, rel_w, (5, 4), pool, backend)
            if backward:
                out.sum().backward()

        return step

    for backward in (False, True):
        assert flops(run("cpu", backward)) == flops(run("plain", backward)) > 0


def test_a_large_map_counts_nothing_for_what_is_computed_again() -> None:
    q, k, v, rel_h, rel_w = (tensor.requires_grad_() for tensor in operands())
    q, k, v = (tensor[:1, :1].repeat(1, 1, 55, 1).detach().requires_grad_() for tensor in (q, k, v))
    rel_h = torch.randn(2 * 275 - 1, 8, requires_grad=True)  # 275x4, more than 32x32

    def step(backend: str) -> Callable[[], object]:
        return lambda: (
            relative_attention_2d(q, k, v, rel_h, rel_w, (275, 4), backend=backend).sum().backward()
        )

    assert flops(step("cpu")) == flops(step("plain"))


@pytest.mark.parametrize("content", [False, True])
def test_the_cuda_operators_count_the_same(content: bool) -> None:
    q, k, v, rel_h, rel_w = operands("meta")
    k = k if content else None
    table = torch.cat((rel_h, rel_w))

    def plain() -> None:
        leaves = [tensor.requires_grad_() for tensor in (q, v, rel_h, rel_w)]
        key = None if k is None else k.requires_grad_()
        relative_attention_2d(leaves[0], key, *leaves[1:], (5, 4), backend="plain").sum().backward()

    def operators() -> None:
        with torch.no_grad():
            out, lse = ops.relative_attention_2d_cuda(q, k, v, table, 5, 4)
            ops.relative_attention_2d_cuda_backward(out, q, k, v, table, out, lse, 5, 4)

    assert flops(operators) == flops(plain)


@pytest.mark.parametrize("products", ["onednn", "mkl"])
@pytest.mark.parametrize(("for_x", "for_weight"), [(True, True), (True, False), (False, True)])
def test_a_projection_is_counted_as_a_linear_layer(
    products: str, for_x: bool, for_weight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if products == "onednn" and not choice.onednn_works():
        pytest.skip("this PyTorch has no oneDNN operator")
    monkeypatch.setattr(choice, "_products", products)
    x, weight = torch.randn(2, 7, 5, requires_grad=for_x), torch.randn(6, 5, requires_grad=for_weight)
    for counted in (
        lambda product: flops(lambda: product(x, weight)),
        lambda product: flops(lambda: product(x, weight).sum().backward()),
    ):
        assert counted(linear) == counted(torch.nn.functional.linear) > 0


def test_onednn_s_own_operator_is_counted_too() -> None:
    if not choice.onednn_works():
        pytest.skip("this PyTorch has no oneDNN operator")
    a, b = torch.randn(7, 5), torch.randn(6, 5)
    assert flops(lambda: choice.onednn(a, b)) == flops(lambda: a @ b.T)


def test_every_operator_of_the_package_has_a_formula() -> None:
    from torch.utils.flop_counter import flop_registry

    import attneck.layers  # noqa: F401 - which brings all of them

    own = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("attneck::")
    }
    assert own
    assert {name for name in own if getattr(ops, name) not in flop_registry} == set()
