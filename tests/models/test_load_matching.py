"""Weights of another network: what fits is taken, what doesn't stays new, and nothing is raised for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attneck.attention.relative import resample_rows
from attneck.layers import MHSA2d
from attneck.models.weights import load_matching

TABLES = {
    "relative": {"attention.rel_h", "attention.rel_w"},
    "absolute": {"attention.abs_h", "attention.abs_w"},
}


class Net(nn.Module):
    """A convolution, then attention."""

    def __init__(self, channels: int = 16, map_size: tuple[int, int] = (4, 6), **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.attention = MHSA2d(channels, map_size, **options)


def load(network: Net, weights: Any) -> tuple[set[str], set[str], set[str]]:
    """What was taken, is new and is unused, each checked against what the network holds."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loaded = load_matching(network, weights)
    after = network.state_dict()
    assert {*loaded.taken, *loaded.new} == {*after}
    for name in loaded.new:
        assert torch.equal(after[name], before[name])
    for name in loaded.taken:
        given = weights[name]
        wanted = given if given.shape == after[name].shape else resample_rows(given, len(after[name]))
        assert torch.equal(after[name], wanted)
    return {*loaded.taken}, {*loaded.new}, {*loaded.unused}


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_of_another_number_of_heads_are_new(position: Any) -> None:
    for size in ((4, 6), (7, 5)):
        source = Net(heads=4, position=position).state_dict()
        taken, new, unused = load(Net(map_size=size, heads=2, position=position), source)
        assert new == unused == TABLES[position]
        assert taken == {"conv.weight", "conv.bias", "attention.qkv.weight"}


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_of_another_map_are_resampled(position: Any) -> None:
    source = Net(position=position).state_dict()
    taken, new, unused = load(Net(map_size=(7, 5), position=position), source)
    assert (taken, new, unused) == ({*source}, set(), set())


def test_tables_go_with_their_layer_s_projections() -> None:
    """Of another width with the same head width, or without content, or without projections at all."""
    wide, plain = Net(32, heads=8).state_dict(), Net(content=False).state_dict()
    alone = {name: tensor for name, tensor in Net().state_dict().items() if "qkv" not in name}
    with pytest.raises(ValueError, match="none of the 5 tensors given"):
        load_matching(Net(), wide)
    for source in (plain, alone):
        taken, new, unused = load(Net(), source)
        assert taken == {"conv.weight", "conv.bias"}
        assert new == {"attention.qkv.weight", *TABLES["relative"]}
        assert unused == {*source} - taken


@pytest.mark.parametrize("given", ["relative", "absolute", "none"])
@pytest.mark.parametrize("wanted", ["relative", "absolute", "none"])
def test_another_kind_of_position(given: Any, wanted: Any) -> None:
    taken, new, unused = load(Net(position=wanted), Net(position=given).state_dict())
    same = TABLES.get(wanted, set()) if given == wanted else set()
    assert taken == {"conv.weight", "conv.bias", "attention.qkv.weight", *same}
    assert new == TABLES.get(wanted, set()) - same
    assert unused == TABLES.get(given, set()) - same


@pytest.mark.parametrize(
    "table", [torch.zeros(4), torch.zeros(8, 4), torch.zeros(0, 4), torch.zeros(7, 4, 1)]
)
def test_what_is_no_table_is_not_taken(table: Tensor) -> None:
    source = {**Net().state_dict(), "attention.rel_h": table}
    assert load(Net(), source)[1:] == ({"attention.rel_h"}, {"attention.rel_h"})


def test_other_floats_are_cast_and_other_kinds_refused() -> None:
    weight = torch.ones(16, 3, 1, 1)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert load(Net(), {"conv.weight": weight.to(dtype)})[0] == {"conv.weight"}
    for wrong in (weight.long(), weight.to(torch.complex64), weight.bool(), weight * torch.nan):
        with pytest.raises(ValueError, match=r"tensor conv\.weight is "):
            load_matching(Net(), {"conv.weight": wrong})
    with pytest.raises(ValueError, match="conv.weight is of type list, wanted tensors by name"):
        load_matching(Net(), {"conv.weight": [1.0]})


def test_a_layer_by_itself() -> None:
    source, layer = MHSA2d(16, 4), MHSA2d(16, 6)
    assert load_matching(layer, source.state_dict()).new == []
    assert load_matching(layer, MHSA2d(16, 4, heads=2).state_dict()).new == ["rel_h", "rel_w"]
