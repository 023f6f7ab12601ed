"""MHSA2d: its parameters and options, and its result and gradients against the oracle."""

import pytest
import torch
from torch import Tensor

from attneck.attention import reference
from attneck.layers import MHSA2d


def by_the_oracle(layer: MHSA2d, x: Tensor) -> Tensor:
    """The layer restated with the oracle's functions; the tables must be those of x's map."""
    B, C, H, W = x.shape
    h, d, pool = layer.heads, layer.head_width, layer.stride == 2
    parts = layer.qkv.weight.chunk(3 if layer.content else 2)  # [C, C, 1, 1] each
    q, *k, v = (reference.convolution_1x1(x, w).reshape(B, h, d, H * W).transpose(2, 3) for w in parts)
    q, key = q / d**0.5, k[0] if k else None
    if layer.position == "relative":
        out = reference.relative_attention_2d(
            q, key, v, layer.rel_h, layer.rel_w, (H, W), pool, layer.content
        )
    elif layer.position == "absolute":
        out = reference.absolute_attention_2d(
            q, key, v, layer.abs_h, layer.abs_w, (H, W), pool, layer.content
        )
    else:
        assert key is not None
        out = reference.content_attention_2d(q, key, v, (H, W), pool)
    H, W = (-(-H // 2), -(-W // 2)) if pool else (H, W)
    return out.transpose(2, 3).reshape(B, C, H, W)


def enliven(layer: MHSA2d) -> MHSA2d:
    """Weights at which the softmax is neither flat nor saturated; freshly initialised it is flat."""
    torch.nn.init.normal_(layer.qkv.weight, std=layer.channels**-0.5)
    return layer


VARIANTS = [("relative", True), ("relative", False), ("absolute", True), ("absolute", False), ("none", True)]


@pytest.mark.parametrize(("position", "content"), VARIANTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("map_size", [(7, 7), (4, 9)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_result_and_gradients_are_the_oracle_s(
    position: str,
    content: bool,
    stride: int,
    map_size: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(12, map_size, heads=3, position=position, content=content, stride=stride).double())
    x = torch.randn(2, 12, *map_size, dtype=torch.float64, requires_grad=True)
    want = by_the_oracle(layer, x)
    direction = torch.randn_like(want)
    wanted = [want, *torch.autograd.grad(want, [x, *layer.parameters()], direction)]

    layer, x = layer.to(dtype), x.detach().to(dtype).requires_grad_()
    out = layer(x)
    got = [out, *torch.autograd.grad(out, [x, *layer.parameters()], direction.to(dtype))]
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(
            one.double(), other, rtol=0, atol=tolerance * float(other.detach().abs().max())
        )


@pytest.mark.parametrize(
    ("position", "content", "shapes"),
    [
        ("relative", True, {"qkv.weight": (24, 8, 1, 1), "rel_h": (5, 4), "rel_w": (9, 4)}),
        ("relative", False, {"qkv.weight": (16, 8, 1, 1), "rel_h": (5, 4), "rel_w": (9, 4)}),
        ("absolute", True, {"qkv.weight": (24, 8, 1, 1), "abs_h": (3, 4), "abs_w": (5, 4)}),
        ("none", True, {"qkv.weight": (24, 8, 1, 1)}),
        (None, True, {"qkv.weight": (24, 8, 1, 1)}),
    ],
)
def test_it_holds_exactly_these_parameters(
    position: str | None, content: bool, shapes: dict[str, tuple[int, ...]]
) -> None:
    layer = MHSA2d(8, (3, 5), heads=2, position=position, content=content)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == shapes
    assert len(list(layer.parameters())) == len(shapes)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_it_starts_at_the_published_spread(position: str) -> None:
    torch.manual_seed(0)
    layer = MHSA2d(512, 64, position=position)
    for name, value in layer.named_parameters():
        std = 0.01 if name == "qkv.weight" else 128**-0.5
        assert float(value.detach().std()) == pytest.approx(std, rel=0.02)
        assert abs(float(value.detach().mean())) < 0.02 * std


@pytest.mark.parametrize(("position", "content"), VARIANTS)
def test_attention_maps_are_the_weights_of_forward(position: str, content: bool) -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(8, (3, 4), heads=2, position=position, content=content)).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    weights = layer.attention_maps(x)  # [B, h, N, N]
    assert weights.shape == (2, 2, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12).double())
    v = torch.nn.functional.conv2d(x, layer.qkv.weight[-8:]).view(2, 2, 4, 12)  # [B, h, d, N]
    want = (v @ weights.transpose(2, 3)).view(2, 8, 3, 4)
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


def test_channels_last_maps_go_through_without_a_copy() -> None:
    layer = enliven(MHSA2d(16, (6, 5), heads=2))
    x = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    q, k, v = layer._project(x)
    tokens = q.untyped_storage()
    assert tokens.nbytes() == 3 * x.numel() * 4
    assert {part.untyped_storage().data_ptr() for part in (k, v)} == {tokens.data_ptr()}
    out = layer(x)
    assert out._is_view()  # of what the attention wrote
    assert out.untyped_storage().nbytes() == out.numel() * 4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_activation_may_write_over_its_result(stride: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(16, (6, 5), heads=2, stride=stride))
    x = torch.randn(2, 16, 6, 5).to(memory_format=memory_format).requires_grad_()
    want = torch.autograd.grad(layer(x).relu().sum(), [x, *layer.parameters()])
    got = torch.autograd.grad(layer(x).relu_().sum(), [x, *layer.parameters()])
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_its_projection_is_the_convolution_that_it_stands_for() -> None:
    torch.manual_seed(0)
    layer = MHSA2d(16, (6, 5), heads=2).qkv
    assert isinstance(layer, torch.nn.Conv2d)
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-5)]:
        layer, x = layer.to(dtype), torch.randn(2, 16, 6, 5, dtype=dtype, requires_grad=True)
        want = torch.nn.functional.conv2d(x, layer.weight)
        direction = torch.randn_like(want)
        got = layer(x)
        for one, other in zip(
            [got, *torch.autograd.grad(got, [x, layer.weight], direction)],
            [want, *torch.autograd.grad(want, [x, layer.weight], direction)],
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_an_exported_graph_has_no_operator_of_ours() -> None:
    torch.manual_seed(0)
    layer, x = enliven(MHSA2d(16, (6, 5), heads=2)).eval(), torch.randn(2, 16, 6, 5)
    program = torch.export.export(layer, (x,))
    assert not any("attneck" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_an_image_s_result_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(8, 5, heads=2, stride=2)).double()
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    alone = torch.cat([layer(image) for image in x.split(1)])
    torch.testing.assert_close(layer(x), alone, rtol=1e-13, atol=1e-13)


def test_without_positions_shuffled_cells_give_the_result_shuffled_and_with_them_not() -> None:
    torch.manual_seed(0)
    x, order = torch.randn(1, 8, 4, 4, dtype=torch.float64), torch.randperm(16)
    shuffled = x.flatten(2)[..., order].view_as(x)
    for position in ("none", "relative", "absolute"):
        layer = enliven(MHSA2d(8, 4, heads=2, position=position)).double()
        follows = torch.allclose(layer(shuffled), layer(x).flatten(2)[..., order].view_as(x), atol=1e-10)
        assert follows == (position == "none")


def test_it_runs_in_bfloat16_and_under_autocast() -> None:
    torch.manual_seed(0)
    for position, content in VARIANTS:
        layer = enliven(MHSA2d(16, 6, heads=2, position=position, content=content))
        x = torch.randn(2, 16, 7, 6)  # tables resampled, too
        want = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x)
        low = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
        for out in (mixed, low):
            assert out.dtype == torch.bfloat16
            assert (out.float() - want).abs().max() < 0.03 * want.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 10, "map_size": 4}, "10 channels do not split into 4 heads"),
        ({"channels": 8, "map_size": 4, "position": "rotary"}, "choose one of relative, absolute, none"),
        ({"channels": 8, "map_size": 4, "position": "none", "content": False}, "leaves no logits"),
        ({"channels": 8, "map_size": 4, "position": None, "content": False}, "leaves no logits"),
        ({"channels": 8, "map_size": 4, "stride": 3}, "stride 3 is not supported; choose 1, or 2"),
        ({"channels": 8, "map_size": (4, 0)}, r"map_size \(4, 0\) has no cells"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MHSA2d(**arguments)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (8, 3, 3)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, C, H, W\] with C = 8"):
        MHSA2d(8, 3)(torch.zeros(shape))
