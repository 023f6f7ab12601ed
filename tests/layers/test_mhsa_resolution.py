"""MHSA2d on maps other than the one it was made for, and its checkpoints at another size."""

import copy
import warnings

import pytest
import torch

from attneck.attention import resample_rows, resample_table
from attneck.layers import MHSA2d


@pytest.mark.parametrize("resample", ["stretch", "keep"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("map_size", [(24, 24), (28, 28), (7, 20), (1, 1)])
def test_a_checkpoint_from_224_loads_elsewhere_and_says_what_the_old_layer_says_there(
    position: str, map_size: tuple[int, int], resample: str
) -> None:
    torch.manual_seed(0)
    old, new = (MHSA2d(8, size, position=position, resample=resample).double() for size in (14, map_size))
    checkpoint = {"c5.attention." + name: value for name, value in old.state_dict().items()}
    before = copy.deepcopy(checkpoint)
    new_model = torch.nn.ModuleDict({"c5": torch.nn.ModuleDict({"attention": new})})
    result = new_model.load_state_dict(checkpoint)
    assert not result.missing_keys
    assert not result.unexpected_keys
    x = torch.randn(2, 8, *map_size, dtype=torch.float64)
    torch.testing.assert_close(new(x), old(x), rtol=1e-13, atol=1e-13)
    assert all(torch.equal(checkpoint[name], before[name]) for name in before)  # the caller's is left alone


def test_a_checkpoint_s_tables_are_resampled_one_by_one() -> None:
    old, new = MHSA2d(8, (14, 7)), MHSA2d(8, (24, 7))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.rel_h, resample_table(old.rel_h, 24))
    assert torch.equal(new.rel_w, old.rel_w)
    old, new = MHSA2d(8, (14, 7), position="absolute"), MHSA2d(8, (14, 12), position="absolute")
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.abs_h, old.abs_h)
    assert torch.equal(new.abs_w, resample_rows(old.abs_w, 12))


def test_what_is_another_layer_s_checkpoint_is_still_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for rel_h"):
        MHSA2d(8, 7, heads=4).load_state_dict(MHSA2d(8, 9, heads=2).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*rel_h"):
        MHSA2d(8, 7).load_state_dict(MHSA2d(8, 9, position="none").state_dict())
    even = {**MHSA2d(8, 7).state_dict(), "rel_h": torch.zeros(12, 2)}
    with pytest.raises(RuntimeError, match="size mismatch for rel_h"):
        MHSA2d(8, 7).load_state_dict(even)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace:DeprecationWarning")
@pytest.mark.parametrize("resample", ["stretch", "keep"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_a_trace_at_the_layer_s_own_size_is_right_at_others(position: str, resample: str) -> None:
    """Tables that fit another map by their rows together are not taken for its own: 7 + 7 = 6 + 8."""
    torch.manual_seed(0)
    layer = MHSA2d(8, 7, position=position, resample=resample).double()
    torch.nn.init.normal_(layer.qkv.weight, std=0.5)
    traced = torch.jit.trace(layer.eval(), torch.randn(1, 8, 7, 7, dtype=torch.float64))
    for map_size in ((7, 7), (6, 8), (14, 14), (3, 5)):
        x = torch.randn(2, 8, *map_size, dtype=torch.float64)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_learn_on_another_map(position: str) -> None:
    torch.manual_seed(0)
    layer = MHSA2d(8, (4, 3), position=position, stride=2).double()
    torch.nn.init.normal_(layer.qkv.weight, std=0.5)
    x = torch.randn(1, 8, 5, 2, dtype=torch.float64)
    tables = [value for name, value in layer.named_parameters() if name != "qkv.weight"]

    def run(*values: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in layer.named_parameters() if name != "qkv.weight"]
        out = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        assert isinstance(out, torch.Tensor)
        return out

    assert torch.autograd.gradcheck(run, tuple(tables))


@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
@pytest.mark.parametrize("size", [(7, 7), (5, 8), (1, 9), (1, 1)])
def test_stride_two_rounds_an_odd_map_up_as_a_strided_shortcut_does(
    position: str, size: tuple[int, int]
) -> None:
    shortcut = torch.nn.Conv2d(8, 8, kernel_size=1, stride=2)
    x = torch.randn(2, 8, *size)
    for made_for in (size, (6, 6)):
        assert MHSA2d(8, made_for, position=position, stride=2)(x).shape == shortcut(x).shape


def test_stride_two_averages_what_stride_one_gives() -> None:
    torch.manual_seed(0)
    strided, plain = MHSA2d(8, 5, stride=2).double(), MHSA2d(8, 5).double()
    plain.load_state_dict(strided.state_dict())
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    full, half = plain(x), strided(x)
    torch.testing.assert_close(half[..., 0, 0], full[..., :2, :2].mean((2, 3)))
    torch.testing.assert_close(half[..., 2, 1], full[..., 4, 2:4].mean(2))
    torch.testing.assert_close(half[..., 2, 2], full[..., 4, 4])


@pytest.mark.parametrize("resample", ["stretch", "keep"])
@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize(("made", "side"), [(7, 7), (7, 9), (7, 6), (7, 5), (7, 4), (7, 3), (14, 8), (14, 7)])
def test_rows_that_do_not_learn_are_said_once_in_training(
    position: str, resample: str, made: int, side: int
) -> None:
    torch.manual_seed(0)
    layer = MHSA2d(8, (made, 3), position=position, resample=resample)
    x = torch.randn(2, 8, side, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.eval()(x)
        with torch.no_grad():
            layer.train()(x)
        assert not caught
        for _ in range(2):
            layer(x).square().sum().backward()
    table = layer.rel_h if position == "relative" else layer.abs_h
    left = bool((table.grad == 0).all(dim=1).any())
    assert len(caught) == left
    for warning in caught:
        assert f"for a map of {made}x3 is trained on one of {side}x3" in str(warning.message)
    with warnings.catch_warnings(record=True) as frozen:
        MHSA2d(8, (made, 3), position=position).requires_grad_(False)(x)
        assert not frozen


def test_a_graph_is_none_to_be_told_of_rows() -> None:
    layer, x = MHSA2d(8, 14), torch.randn(2, 8, 7, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.compile(layer, backend="eager", fullgraph=True)(x).sum().backward()
        torch.export.export(layer, (x,))
    assert not [warning for warning in caught if "position tables" in str(warning.message)]
