"""MHSA2d against two other people's implementations with the same weights."""

import pytest
import torch
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from attneck.layers import MHSA2d

SIZES = [(4, 4), (3, 6), (6, 3)]


def layer_and_input(map_size: tuple[int, int], **options: object) -> tuple[MHSA2d, Tensor]:
    """A layer whose softmax is not flat, and a map for it."""
    torch.manual_seed(0)
    layer = MHSA2d(32, map_size, heads=4, **options).double()
    nn.init.normal_(layer.qkv.weight, std=0.3)
    return layer, torch.randn(2, 32, *map_size, dtype=torch.float64, requires_grad=True)


def assert_same(layer: nn.Module, peer: nn.Module, x: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Equal results, equal gradients of x and of each pair of parameters."""
    got, want = layer(x), peer(x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(want)
    gradients = torch.autograd.grad(got, [x, *(ours for ours, _ in pairs)], direction)
    others = torch.autograd.grad(want, [x, *(theirs for _, theirs in pairs)], direction)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def tie(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Give the peer our values."""
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)


# Strided, on an even map: timm's pool floors where ours, as the shortcut of a block needs it, rounds up.
@pytest.mark.parametrize(("map_size", "stride"), [*((size, 1) for size in SIZES), ((4, 6), 2)])
def test_timm_with_its_position_term_scaled(map_size: tuple[int, int], stride: int) -> None:
    layer, x = layer_and_input(map_size, stride=stride)
    peer = BottleneckAttn(32, feat_size=map_size, stride=stride, num_heads=4, scale_pos_embed=True).double()
    pairs = [
        (layer.qkv.weight, peer.qkv.weight),
        (layer.rel_h, peer.pos_embed.height_rel),
        (layer.rel_w, peer.pos_embed.width_rel),
    ]
    tie(pairs)
    assert_same(layer, peer, x, pairs)


def test_timm_unscaled_is_ours_with_the_tables_times_the_root_of_d() -> None:
    layer, x = layer_and_input((3, 5))
    peer = BottleneckAttn(32, feat_size=(3, 5), num_heads=4, scale_pos_embed=False).double()
    tie([(layer.qkv.weight, peer.qkv.weight)])
    tie([(layer.rel_h, peer.pos_embed.height_rel), (layer.rel_w, peer.pos_embed.width_rel)])
    assert (layer(x) - peer(x)).abs().max() > 1e-2  # as it is, timm's default is another function
    with torch.no_grad():
        layer.rel_h.mul_(layer.head_width**0.5)
        layer.rel_w.mul_(layer.head_width**0.5)
    assert_same(layer, peer, x, [(layer.qkv.weight, peer.qkv.weight)])


@pytest.mark.parametrize("map_size", SIZES)
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_bottleneck_transformer_pytorch(map_size: tuple[int, int], position: str) -> None:
    layer, x = layer_and_input(map_size, position=position)
    peer = Attention(
        dim=32, fmap_size=map_size, heads=4, dim_head=8, rel_pos_emb=position == "relative"
    ).double()
    if position == "relative":
        tables = [(layer.rel_h, peer.pos_emb.rel_height), (layer.rel_w, peer.pos_emb.rel_width)]
    else:
        tables = [(layer.abs_h, peer.pos_emb.height), (layer.abs_w, peer.pos_emb.width)]
    pairs = [(layer.qkv.weight, peer.to_qkv.weight), *tables]
    tie(pairs)
    assert_same(layer, peer, x, pairs)
