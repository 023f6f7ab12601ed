"""The CPU backend: how near it is to the oracle, its tiles, what it keeps, how it goes through PyTorch."""

import importlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attneck.attention import reference, relative_attention_2d
from attneck.attention.cpu import choice, products, tiles

cpu = importlib.import_module("attneck.attention.cpu.operator")


def problem(
    B: int, h: int, d: int, map_size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q (scaled), k, v and tables as a fresh layer has them, exact in `dtype`; all in float64."""
    H, W = map_size
    q, k, v = torch.randn(3, B, h, H * W, d, dtype=torch.float64).unbind()
    rel_h, rel_w = torch.randn(2, 2 * max(H, W) - 1, d, dtype=torch.float64).unbind()
    tensors = [q * d**-0.5, k, v, rel_h[: 2 * H - 1] * d**-0.5, rel_w[: 2 * W - 1] * d**-0.5]
    return [tensor.to(dtype).double() for tensor in tensors]


def attend_and_differentiate(
    tensors: list[Tensor], map_size: tuple[int, int], pool: bool, oracle: bool = False
) -> list[Tensor]:
    """The result and the gradients of all five operands, for one direction.

    The oracle loops over the positions: of a large map "plain" takes its place, which others hold against it.
    """
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    if oracle and max(map_size) > 20:
        out = relative_attention_2d(*leaves, map_size, pool, "plain")
    elif oracle:
        out = reference.relative_attention_2d(*leaves, map_size, pool)
    else:
        out = relative_attention_2d(*leaves, map_size, pool, "cpu")
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    direction = direction.to(torch.bfloat16).to(out.dtype)  # exact in every dtype
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


def relative_errors(got: list[Tensor], want: list[Tensor]) -> list[float]:
    """Norm of the error over the norm, tensor by tensor."""
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(got, want, strict=True)]


@pytest.mark.parametrize("map_size", [(7, 7), (5, 9), (14, 14), (20, 20), (24, 24), (32, 32), (35, 36)])
@pytest.mark.parametrize("pool", [False, True])
def test_every_dtype_is_as_near_to_the_oracle_as_it_can_be_and_gives_the_same_bits_twice(
    map_size: tuple[int, int], pool: bool
) -> None:
    torch.manual_seed(0)
    tensors = problem(1 if map_size[0] > 20 else 2, 2, 16, map_size, torch.bfloat16)
    want = attend_and_differentiate(tensors, map_size, pool, oracle=True)
    for dtype, bound in [(torch.float32, 1e-6), (torch.bfloat16, 1.2e-2), (torch.float16, 2e-3)]:
        given = [tensor.to(dtype) for tensor in tensors]
        got = attend_and_differentiate(given, map_size, pool)
        assert all(tensor.dtype == dtype for tensor in got)
        errors = relative_errors(got, want)
        assert all(error < bound for error in errors), (dtype, errors)
        again = attend_and_differentiate(given, map_size, pool)
        assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, 3) for _ in range(3)), st.integers(1, 7), st.integers(1, 7)),
    options=st.tuples(st.booleans(), st.booleans()),
    rows=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_any_tiling_gives_the_oracle_s_numbers(
    sizes: tuple[int, ...], options: tuple[bool, bool], rows: int, seed: int
) -> None:
    (B, h, d, H, W), (pool, content) = sizes, options
    torch.manual_seed(seed)
    q, k, v, rel_h, rel_w = tensors = problem(B, h, d, (H, W))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "KEEP", 0)
        patch.setattr(tiles, "KEEP", 0)
        patch.setattr(tiles, "LOGITS", rows * H * W * W)
        whole = tiles.Tiling.of(q, k, H, W, pool)
        assert whole.rows == min(H, rows + rows % 2 if pool else rows)
        leaves = [tensor.requires_grad_() for tensor in tensors]
        got = relative_attention_2d(q, k if content else None, v, rel_h, rel_w, (H, W), pool, "cpu")
        want = reference.relative_attention_2d(q, k, v, rel_h, rel_w, (H, W), pool, content)
        used = [leaf for leaf in leaves if content or leaf is not k]
        direction = torch.randn_like(want)
        for one, other in zip(
            [got, *torch.autograd.grad(got, used, direction)],
            [want, *torch.autograd.grad(want, used, direction)],
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_sums_over_many_tiles_do_not_stall_in_half_precision() -> None:
    q = torch.zeros(1, 1, 400 * 8, 2, dtype=torch.bfloat16)
    tiling = tiles.Tiling.of(q, q, 400, 8, False)
    assert tiling.rows < 400
    total = None
    for _ in range(400):  # a sum in bfloat16 stays at 256
        total = tiling.plus(total, torch.ones(2, dtype=torch.bfloat16))
    assert total.tolist() == [400, 400]


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("map_size", [(14, 13), (35, 36)])
def test_both_libraries_give_the_oracle_s_numbers(
    onednn: bool, map_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn and not choice.onednn_works():
        pytest.skip("this PyTorch has no oneDNN operator")
    torch.manual_seed(0)
    monkeypatch.setattr(choice, "_products", "onednn" if onednn else "mkl")
    tensors = problem(2, 3, 8, map_size, torch.float32)
    for pool in (False, True):
        want = attend_and_differentiate(tensors, map_size, pool, oracle=True)
        got = attend_and_differentiate([tensor.float() for tensor in tensors], map_size, pool)
        errors = relative_errors(got, want)
        assert all(error < 1e-6 for error in errors), errors
    x, weight, bias = torch.randn(2, 5, 7), torch.randn(6, 7), torch.randn(6)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    got, want = products.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    direction = torch.randn_like(want)
    for one, other in zip(
        [got, *torch.autograd.grad(got, leaves, direction)],
        [want, *torch.autograd.grad(want, leaves, direction)],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    torch.manual_seed(0)
    tensors = problem(1, 2, 4, (4, 3))
    everything = attend_and_differentiate(tensors, (4, 3), True)[1:]
    operator = torch.ops.attneck.relative_attention_2d_cpu_backward
    grad, weights = torch.randn(1, 2, 4, 4).double(), torch.empty(0).double()
    for i, want in enumerate(everything):
        leaves = [tensor.clone().requires_grad_(i == j) for j, tensor in enumerate(tensors)]
        out = relative_attention_2d(*leaves, (4, 3), True, "cpu")
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
        out.backward(direction)
        torch.testing.assert_close(leaves[i].grad, want, rtol=1e-12, atol=1e-12)
        wanted = [i == 0, i == 1, i == 2, i > 2]
        parts = operator(grad, *tensors, weights, 4, 3, True, 1.0, *wanted)
        assert [part.numel() > 0 for part in parts] == wanted


def test_weights_are_kept_for_backward_up_to_32_by_32_and_only_for_it() -> None:
    def kept(map_size: tuple[int, int], grad: bool) -> int:
        tensors = [tensor.float().requires_grad_(grad) for tensor in problem(1, 1, 2, map_size)]
        largest = [0]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: largest.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            relative_attention_2d(*tensors, map_size, backend="cpu")
        return max(largest)

    assert kept((32, 32), True) == 1024**2
    assert kept((33, 32), True) == 2 * 33 * 32
    assert kept((32, 32), False) == 0


def test_channels_last_tokens_are_taken_and_given_as_they_lie() -> None:
    torch.manual_seed(0)
    B, h, d, H, W = 2, 2, 8, 5, 6
    qkv = torch.randn(B, 3 * h * d, H, W).to(memory_format=torch.channels_last)
    parts = qkv.permute(0, 2, 3, 1).reshape(B, H * W, 3, h, d).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts)
    tables = torch.randn(2 * H - 1, d), torch.randn(2 * W - 1, d)
    for pool in (False, True):
        out = relative_attention_2d(q, k, v, *tables, (H, W), pool)
        assert out.transpose(1, 2).is_contiguous()
        dense = relative_attention_2d(q.contiguous(), k.contiguous(), v.contiguous(), *tables, (H, W), pool)
        assert torch.equal(out, dense)


def test_an_empty_batch_gives_an_empty_result() -> None:
    q, k, v, rel_h, rel_w = (tensor.float().requires_grad_() for tensor in problem(1, 2, 4, (3, 3)))
    out = relative_attention_2d(q[:0], k[:0], v[:0], rel_h, rel_w, (3, 3), backend="cpu")
    assert out.shape == (0, 2, 9, 4)
    out.sum().backward()
    assert rel_h.grad is not None
    assert not rel_h.grad.any()


def test_under_autocast_all_is_taken_in_its_dtype() -> None:
    torch.manual_seed(0)
    tensors = [tensor.float().requires_grad_() for tensor in problem(2, 2, 8, (6, 5))]
    want = relative_attention_2d(*tensors, (6, 5))
    with torch.autocast("cpu", torch.bfloat16):
        out = relative_attention_2d(tensors[0].bfloat16(), *tensors[1:], (6, 5))
        out.float().square().sum().backward()  # backward inside, too
        double = relative_attention_2d(*(tensor.double() for tensor in tensors), (6, 5))
    assert (out.dtype, double.dtype) == (torch.bfloat16, torch.float64)
    assert relative_errors([out.detach()], [want.detach().double()])[0] < 1.2e-2
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors[1:])


def test_default_device_and_dtype_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tensors = [tensor.float() for tensor in problem(1, 2, 4, (13, 12))]
    want = relative_attention_2d(*tensors, (13, 12), True)
    monkeypatch.setattr(choice, "_products", None)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = relative_attention_2d(*tensors, (13, 12), True)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, want)


def test_several_dtypes_are_refused() -> None:
    q, *rest = problem(1, 1, 2, (2, 2))
    with pytest.raises(ValueError, match=r"dtypes torch.float32, torch.float64.*convert them"):
        relative_attention_2d(q.float(), *rest, (2, 2), backend="cpu")


def test_second_derivatives_are_refused_and_plain_is_named() -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(1, 1, 2, (2, 2))]
    out = relative_attention_2d(*tensors, (2, 2), backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='plain'"):
        gradient.sum().backward()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
def test_compiled_it_is_one_graph_with_the_same_numbers(pool: bool, content: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    q, k, v, rel_h, rel_w = leaves = [t.float().requires_grad_() for t in problem(1, 2, 4, (5, 6))]

    def attend(*_: Tensor) -> Tensor:
        return relative_attention_2d(q, k if content else None, v, rel_h, rel_w, (5, 6), pool, scale=0.5)

    used = [leaf for leaf in leaves if content or leaf is not k]
    want, got = attend(), torch.compile(attend, backend="aot_eager", fullgraph=True)()
    direction = torch.randn_like(want)
    assert got.stride() == want.stride()
    for one, other in zip(
        [got, *torch.autograd.grad(got, used, direction)],
        [want, *torch.autograd.grad(want, used, direction)],
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("keep", [False, True])
def test_the_operators_are_what_they_say_they_are(keep: bool) -> None:
    torch.manual_seed(0)
    q, k, v, rel_h, rel_w = (tensor.float().requires_grad_() for tensor in problem(2, 2, 4, (3, 4)))
    # Its weights are an output without a gradient, which opcheck's own test of gradients does not know.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for key, pool in ((k, True), (None, False)):
        torch.library.opcheck(
            torch.ops.attneck.relative_attention_2d_cpu.default,
            (q, key, v, rel_h, rel_w, 3, 4, pool, 0.5, keep),
            test_utils=tests,
        )
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (4, 3), (4,)))
    torch.library.opcheck(torch.ops.attneck.linear_cpu.default, (x, weight, bias), test_utils=tests)


MEMORY = """
import resource, sys, torch
from attneck.attention import relative_attention_2d

def peak():  # KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def run(H, W):
    q, k, v = (torch.randn(1, 4, H * W, 16, requires_grad=True) for _ in range(3))
    tables = [torch.randn(2 * side - 1, 16, requires_grad=True) for side in (H, W)]
    relative_attention_2d(q, k, v, *tables, (H, W), pool=True).sum().backward()

run(16, 16)  # libraries loaded, threads started
start = peak()
run(64, 64)
once = peak() - start
run(128, 64)
print(once, peak() - start)
"""


def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    once, twice = (int(word) / 1024 for word in done.stdout.split())  # MiB, at 4096 tokens and at 8192
    assert once < 4 * 4096**2 * 4 / 2**20 / 4  # a quarter of the logits alone, which are 256 MiB
    assert twice < 2 * once + 8
