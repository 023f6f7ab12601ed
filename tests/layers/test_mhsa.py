"""MHSA2d: its parameters and options, and its result and gradients against the oracle."""

import copy

import pytest
import torch
from dispatched import Seen
from torch import Tensor

from attneck.attention import reference
from attneck.attention.cpu import choice
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


def kept(table: Tensor, length: int, position: str) -> Tensor:
    """A table whose rows keep their offsets or positions, row by row; beyond it the last row."""
    if position == "absolute":
        return torch.stack([table[min(at, len(table) - 1)] for at in range(length)])
    most = len(table) // 2
    return torch.stack([table[max(-most, min(at, most)) + most] for at in range(1 - length, length)])


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("map_size", [(7, 3), (2, 9)])
def test_kept_tables_are_the_oracle_s_on_another_map(
    position: str, content: bool, map_size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    options = {"heads": 3, "position": position, "content": content}
    layer = enliven(MHSA2d(12, (4, 5), resample="keep", stride=2, **options).double())
    wide = MHSA2d(12, map_size, stride=2, **options).double()
    tables = [name for name in layer.state_dict() if name != "qkv.weight"]
    wide.qkv = layer.qkv
    for name, length in zip(tables, map_size, strict=True):
        setattr(wide, name, torch.nn.Parameter(kept(getattr(layer, name), length, position)))
    x = torch.randn(2, 12, *map_size, dtype=torch.float64)
    want = by_the_oracle(wide, x)
    stretched = copy.deepcopy(layer)
    stretched.resample = "stretch"
    assert not torch.allclose(stretched(x), want)
    for backend in ("auto", "plain", "cpu", "tiled", "sdpa") if position == "relative" else ("auto", "plain"):
        layer.backend = backend
        torch.testing.assert_close(layer(x), want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.attention_maps(x), wide.attention_maps(x), rtol=1e-11, atol=1e-11)
    layer.backend = "auto"
    layer.show_maps()
    torch.testing.assert_close(layer(x), want, rtol=1e-11, atol=1e-11)


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
@pytest.mark.parametrize("backend", ["auto", "plain", "tiled"])
def test_an_activation_may_write_over_its_result(
    backend: str, stride: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(16, (6, 5), heads=2, stride=stride, backend=backend))
    x = torch.randn(2, 16, 6, 5).to(memory_format=memory_format).requires_grad_()
    want = torch.autograd.grad(layer(x).relu().sum(), [x, *layer.parameters()])
    got = torch.autograd.grad(layer(x).relu_().sum(), [x, *layer.parameters()])
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bias", [False, True])
def test_its_projection_is_the_convolution_that_it_stands_for(bias: bool) -> None:
    torch.manual_seed(0)
    layer = enliven(MHSA2d(16, (6, 5), heads=2))
    if bias:  # as after folding
        layer.qkv.bias = torch.nn.Parameter(torch.randn(48))
    assert type(layer.qkv) is torch.nn.Conv2d  # counters and converters ask for the exact type
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-5)]:
        layer, x = layer.to(dtype), torch.randn(2, 16, 6, 5, dtype=dtype, requires_grad=True)
        parameters = [x, *layer.qkv.parameters()]
        want = layer.qkv(x).permute(0, 2, 3, 1)
        direction = torch.randn_like(want)
        got = layer._tokens(x)
        for one, other in zip(
            [got, *torch.autograd.grad(got, parameters, direction)],
            [want, *torch.autograd.grad(want, parameters, direction)],
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


class Doubled(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapted(torch.nn.Module):
    """A projection that somebody put around ours, as LoRA does."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


def doubled_by(way: str, layer: MHSA2d) -> None:
    """Let the layer's projections be twice as large, in one of the ways that people do such things."""
    qkv = layer.qkv
    if way == "parametrized":
        torch.nn.utils.parametrize.register_parametrization(qkv, "weight", Doubled())
    elif way == "adapted":
        layer.qkv = Adapted(qkv)
    elif way == "hook":
        qkv.register_forward_hook(lambda module, given, result: 2 * result)
    elif way == "hook before":
        qkv.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    elif way == "forward":
        forward = qkv.forward
        qkv.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("way", ["parametrized", "adapted", "hook", "hook before", "forward"])
def test_a_projection_that_was_changed_is_called_as_it_is(way: str) -> None:
    torch.manual_seed(0)
    layer, x = enliven(MHSA2d(8, (3, 4), heads=2)), torch.randn(2, 8, 3, 4)
    twice = copy.deepcopy(layer)
    with torch.no_grad():
        twice.qkv.weight.mul_(2)
    before, want = layer(x), twice(x)
    doubled_by(way, layer)
    torch.testing.assert_close(layer(x), want)
    assert (want - before).abs().max() > 0.1


def test_another_convolution_in_the_projection_s_place_is_called() -> None:
    layer = MHSA2d(8, (3, 4), heads=2)
    for convolution, shape in [
        (torch.nn.Conv2d(8, 24, 1, padding=1), (5, 6, 24)),
        (torch.nn.Conv2d(8, 24, 1, stride=2), (2, 2, 24)),
        (torch.nn.Conv2d(8, 24, 3, padding=1), (3, 4, 24)),
        (torch.nn.Conv2d(8, 24, 1, groups=4), (3, 4, 24)),
    ]:
        layer.qkv = convolution
        x = torch.randn(1, 8, 3, 4)
        tokens = layer._tokens(x)
        assert tokens.shape == (1, *shape)
        torch.testing.assert_close(tokens, convolution(x).permute(0, 2, 3, 1))


def test_others_see_the_projection_as_the_convolution_that_it_is() -> None:
    layer, x = enliven(MHSA2d(8, (3, 4), heads=2)), torch.randn(1, 8, 3, 4)
    want = layer(x)
    with Seen() as seen:
        found = layer(x)
    assert "aten.convolution.default" in seen.operators
    torch.testing.assert_close(found, want)


HOOKS = ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_on_the_projection_fire(kind: str, everywhere: bool) -> None:
    layer, x = MHSA2d(8, (3, 4), heads=2), torch.randn(1, 8, 3, 4, requires_grad=True)
    seen: list[torch.nn.Module] = []
    target, prefix = (torch.nn.modules.module, "module_") if everywhere else (layer.qkv, "")
    handle = getattr(target, f"register_{prefix}{kind}")(lambda module, *_: seen.append(module))
    try:
        layer(x).sum().backward()
    finally:
        handle.remove()
    assert seen.count(layer.qkv) == 1


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
        (
            {"channels": 8, "map_size": 4, "resample": "pad"},
            "unknown resample 'pad'; choose one of stretch, keep",
        ),
        ({"channels": 8, "map_size": 4, "position": "none", "resample": "keep"}, "would change nothing"),
        ({"channels": 8, "map_size": 4, "stride": 3}, "stride 3 is not supported; choose 1, or 2"),
        ({"channels": 8, "map_size": (4, 0)}, r"map_size=\(4, 0\): wanted \(height, width\), or one number"),
        (
            {"channels": 8, "map_size": (4, 4, 4)},
            r"map_size=\(4, 4, 4\): wanted \(height, width\), or one number",
        ),
        ({"channels": 8, "map_size": "14"}, r"map_size='14': wanted \(height, width\), or one number"),
        (
            {"channels": 8, "map_size": (4, 4.0)},
            r"map_size=\(4, 4.0\): wanted \(height, width\), or one number",
        ),
        ({"channels": 8, "map_size": None}, r"map_size=None: wanted \(height, width\), or one number"),
        ({"channels": True, "map_size": 4, "heads": 1}, "channels=True: wanted a whole number"),
        ({"channels": "8", "map_size": 4}, "channels='8': wanted a whole number"),
        ({"channels": 10, "map_size": 4, "heads": 2.5}, "heads=2.5: wanted a whole number"),
        ({"channels": 8, "map_size": 4, "heads": 0}, "heads=0: wanted a whole number"),
        ({"channels": 8, "map_size": 4, "stride": True}, "stride=True: wanted a whole number"),
        ({"channels": 8, "map_size": 4, "content": "no"}, "content='no': wanted True or False"),
        ({"channels": 8, "map_size": 4, "position": ["none"]}, r"unknown position \['none'\]; choose one of"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MHSA2d(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (8, 3, 3)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, C, H, W\] with C = 8"):
        MHSA2d(8, 3)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 8, 0, 4), (2, 8, 4, 0), (0, 8, 0, 0)])
@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_a_map_without_positions_is_refused(position: str, shape: tuple[int, ...]) -> None:
    layer = MHSA2d(8, map_size=4, heads=2, position=position)
    with pytest.raises(ValueError, match=r"^the input has shape \[.*\]: a map without positions; [^\n]*$"):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("products", ["mkl", "onednn"])
@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_an_empty_batch_has_gradients(products: str, position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if products == "onednn" and not choice.onednn_works():
        pytest.skip("this PyTorch has no oneDNN operator")
    monkeypatch.setattr(choice, "_products", products)
    layer = MHSA2d(16, 5, position=position)  # type: ignore[arg-type]
    x = torch.randn(0, 16, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(weight.grad is None or not weight.grad.any() for weight in layer.parameters())
