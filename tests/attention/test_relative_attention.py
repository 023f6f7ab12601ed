"""relative_attention_2d against the oracle: the result and every gradient."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attneck.attention import reference, relative, relative_attention_2d

BACKENDS = ["plain", "cpu", "tiled"]


def problem(B: int, h: int, d: int, map_size: tuple[int, int]) -> list[Tensor]:
    """q (scaled), k, v, rel_h, rel_w in float64, logits of order one."""
    H, W = map_size
    q, k, v = torch.randn(3, B, h, H * W, d, dtype=torch.float64).unbind()
    rel_h, rel_w = torch.randn(2 * H - 1, d), torch.randn(2 * W - 1, d)
    return [q * d**-0.5, k, v, rel_h.double(), rel_w.double()]


def results(
    attend: Callable[..., Tensor],
    tensors: list[Tensor],
    map_size: tuple[int, int],
    pool: bool,
    content: bool,
    backend: str = "auto",
) -> list[Tensor]:
    """The output, then the gradients of all that takes part, for a fixed random direction of the output."""
    q, k, v, rel_h, rel_w = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    if attend is reference.relative_attention_2d:
        out = attend(q, k, v, rel_h, rel_w, map_size, pool, content)
    else:
        out = attend(q, k if content else None, v, rel_h, rel_w, map_size, pool, backend)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = [leaf for leaf in leaves if content or leaf is not k]
    return [out.detach(), *torch.autograd.grad(out, used, direction.to(out.dtype))]


def assert_near(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    """Largest error within `tolerance` of the largest entry, tensor by tensor."""
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("map_size", [(7, 7), (5, 9), (14, 14), (20, 20)])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_result_and_gradients_are_the_oracle_s(
    map_size: tuple[int, int], pool: bool, content: bool, dtype: torch.dtype, tolerance: float, backend: str
) -> None:
    torch.manual_seed(0)
    tensors = problem(2, 2, 8, map_size)
    want = results(reference.relative_attention_2d, tensors, map_size, pool, content)
    tensors = [tensor.to(dtype) for tensor in tensors]
    got = results(relative_attention_2d, tensors, map_size, pool, content, backend)
    assert got[0].dtype == dtype
    assert_near(got, want, tolerance)


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    h=st.integers(1, 3),
    d=st.integers(1, 5),
    H=st.integers(1, 7),
    W=st.integers(1, 7),
    pool=st.booleans(),
    content=st.booleans(),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 1000),
)
def test_any_shape_is_the_oracle_s(
    B: int, h: int, d: int, H: int, W: int, pool: bool, content: bool, backend: str, seed: int
) -> None:
    torch.manual_seed(seed)
    tensors = problem(B, h, d, (H, W))
    want = results(reference.relative_attention_2d, tensors, (H, W), pool, content)
    got = results(relative_attention_2d, tensors, (H, W), pool, content, backend)
    for one, other in zip(got, want, strict=True):
        # An absolute bound: with one row or one column some gradients are zero up to rounding.
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(pool: bool, content: bool, backend: str) -> None:
    torch.manual_seed(0)
    q, k, v, rel_h, rel_w = (tensor.requires_grad_() for tensor in problem(1, 2, 2, (2, 3)))

    def attend(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        return relative_attention_2d(q, k if content else None, v, rel_h, rel_w, (2, 3), pool, backend)

    assert torch.autograd.gradcheck(attend, (q, k, v, rel_h, rel_w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operands_of_any_strides_give_the_same(backend: str) -> None:
    torch.manual_seed(0)
    map_size = (4, 6)
    tensors = problem(2, 3, 4, map_size)
    turned = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in tensors]
    assert not any(tensor.is_contiguous() for tensor in turned)
    for pool in (False, True):
        want = relative_attention_2d(*tensors, map_size, pool, backend)
        torch.testing.assert_close(
            relative_attention_2d(*turned, map_size, pool, backend), want, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_is_a_factor_of_q(backend: str) -> None:
    torch.manual_seed(0)
    q, *rest = tensors = [tensor.requires_grad_() for tensor in problem(2, 2, 4, (3, 4))]
    want = relative_attention_2d(0.3 * q, *rest, (3, 4), backend=backend)
    got = relative_attention_2d(*tensors, (3, 4), backend=backend, scale=0.3)
    direction = torch.randn_like(want)
    for one, other in zip(
        [got, *torch.autograd.grad(got, tensors, direction)],
        [want, *torch.autograd.grad(want, tensors, direction)],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="multiply q by a tensor"):  # whose gradient not each backend has
        relative_attention_2d(*tensors, (3, 4), backend=backend, scale=torch.tensor(0.3))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("backend", ["auto", "cpu", "tiled"])
def test_wide_maps_are_computed_as_high_ones(
    backend: str, content: bool, pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the result and the gradients of the plain form."""
    H, W = map_size = (3, 601)
    q, k, *rest = [tensor.requires_grad_() for tensor in problem(1, 2, 4, map_size)]
    tensors = [q, k, *rest] if content else [q, *rest]
    operands = (q, k if content else None, *rest, map_size, pool)
    want = relative_attention_2d(*operands, backend="plain", scale=0.5)
    computed = []

    def noted(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: computed.append(given[5]) or way(*given)

    monkeypatch.setattr(relative, "relative_attention_2d_cpu", noted(relative.relative_attention_2d_cpu))
    monkeypatch.setitem(relative.BACKENDS, "tiled", noted(relative.BACKENDS["tiled"]))
    got = relative_attention_2d(*operands, backend=backend, scale=0.5)
    assert computed == [(W, H)]
    direction = torch.randn_like(want)
    for one, other in zip(
        [got, *torch.autograd.grad(got, tensors, direction)],
        [want, *torch.autograd.grad(want, tensors, direction)],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("by", ["content", "position"])
@pytest.mark.parametrize("map_size", [(5, 4), (14, 14)])
def test_logits_of_ten_thousand_do_not_overflow(
    backend: str, dtype: torch.dtype, by: str, map_size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    H, W = map_size
    q, k, v = torch.zeros(3, 1, 2, H * W, 4, dtype=torch.float64)
    rel_h, rel_w = torch.zeros(2 * H - 1, 4).double(), torch.zeros(2 * W - 1, 4).double()
    signs = torch.randint(0, 2, (1, 2, H * W)) * 2.0 - 1
    q[..., 0] = 64 * signs
    v.normal_()
    if by == "content":  # logits of 10240 and of -10240
        k[..., 0] = 160 * signs.flip(2)
    else:
        rel_h[:, 0] = 80 * (torch.randint(0, 2, (2 * H - 1,)) * 2.0 - 1)
        rel_w[:, 0] = 80 * (torch.randint(0, 2, (2 * W - 1,)) * 2.0 - 1)
    tensors = [q, k, v, rel_h, rel_w]  # all but v are exact in every dtype
    want = results(reference.relative_attention_2d, tensors, map_size, False, True)[0]
    got = results(
        relative_attention_2d, [tensor.to(dtype) for tensor in tensors], map_size, False, True, backend
    )
    assert all(bool(tensor.isfinite().all()) for tensor in got)
    torch.testing.assert_close(got[0].double(), want, rtol=0, atol=0.02)


def test_a_named_backend_is_used_and_an_unknown_one_refused_with_the_choices() -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(1, 1, 2, (2, 2))]
    plain = relative_attention_2d(*tensors, (2, 2), backend="plain")
    torch.testing.assert_close(plain, relative_attention_2d(*tensors, (2, 2)))
    assert "attneck" not in str(plain.grad_fn)
    with pytest.raises(ValueError, match=r"unknown attention backend 'flash'.*auto, plain, cpu"):
        relative_attention_2d(*tensors, (2, 2), backend="flash")


def test_auto_is_cpu_on_the_cpu_and_plain_on_meta_and_in_a_graph_for_elsewhere() -> None:
    class Attend(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return relative_attention_2d(*tensors, (2, 2))

    tensors = [tensor.requires_grad_() for tensor in problem(1, 1, 2, (2, 2))]
    assert "attneck_relative_attention_2d_cpu" in str(Attend()(*tensors).grad_fn.name())
    graph = torch.export.export(Attend(), tuple(tensors)).graph
    assert not any("attneck" in str(node.target) for node in graph.nodes)
    meta = Attend()(*(tensor.to("meta") for tensor in tensors))
    assert meta.shape == (1, 1, 4, 2)
    assert "attneck" not in str(meta.grad_fn.name())


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (1, 1, 5, 2), r"q has shape \[1, 1, 5, 2\].*N = H\*W = 6 for a map of 2x3"),
        (0, (1, 6, 2), r"q has shape \[1, 6, 2\], wanted \[B, h, N, d\]"),
        (1, (1, 1, 6, 3), r"k has shape \[1, 1, 6, 3\], wanted q's shape \[1, 1, 6, 2\]"),
        (2, (1, 2, 6, 2), r"v has shape \[1, 2, 6, 2\], wanted q's shape \[1, 1, 6, 2\]"),
        (3, (5, 2), r"rel_h has shape \[5, 2\], wanted \[2H-1, d\] = \[3, 2\].*resample_table\(rel_h, 2\)"),
        (4, (5, 3), r"rel_w has shape \[5, 3\], wanted \[2W-1, d\] = \[5, 2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(place: int, shape: tuple[int, ...], message: str) -> None:
    tensors = problem(1, 1, 2, (2, 3))
    tensors[place] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        relative_attention_2d(*tensors, (2, 3))
