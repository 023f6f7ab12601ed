"""Whoever is timed against whom computes the same thing."""

from typing import Literal

import pytest
import torch

from attneck.attention import gate
from attneck.layers import BAM, MHSA2d
from attneck.measure import contestants
from attneck.measure.contestants import AttentionCase, BAMCase


@pytest.mark.parametrize("stride", [1, 2])
def test_the_plain_layer_is_the_layer(stride: int) -> None:
    torch.manual_seed(0)
    ours, plain = (kind(16, (5, 6), stride=stride).double() for kind in (MHSA2d, contestants.PlainMHSA))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(x), ours(x))


def test_the_expanded_module_is_the_module() -> None:
    torch.manual_seed(0)
    ours, expanded = (kind(32).double().eval() for kind in (BAM, contestants.ExpandedBAM))
    expanded.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(expanded(x), ours(x))


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", contestants.attention_names(compiled=False))
def test_everybody_in_an_attention_case_runs(name: str, direction: contestants.Direction) -> None:
    result = contestants.attention_call(AttentionCase(4, 2, stride=2, channels=16), name, direction)()
    if direction == "forward":
        assert isinstance(result, torch.Tensor)
        assert result.shape == (2, 16, 2, 2)


@pytest.mark.parametrize("part", ["gate", "module"])
@pytest.mark.parametrize("name", contestants.bam_names(compiled=False))
def test_everybody_in_a_bam_case_runs(name: str, part: Literal["gate", "module"]) -> None:
    case = BAMCase(32, 4, 2, "bfloat16", part)
    result = contestants.bam_call(case, name, "forward")()
    assert isinstance(result, torch.Tensor)
    assert result.shape == (2, 32, 4, 4)
    assert result.dtype == torch.bfloat16
    contestants.bam_call(case, name, "forward+backward")()


@pytest.mark.parametrize("part", ["gate", "module"])
def test_who_is_compiled_is_who_is_named(
    part: Literal["gate", "module"], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.nn.Module] = []
    monkeypatch.setattr(contestants.torch, "compile", lambda layer: given.append(layer) or layer)
    case, small = BAMCase(32, 4, 2, part=part), AttentionCase(4, 2, channels=16)
    for name in contestants.bam_names(compiled=True):
        contestants.bam_call(case, name, "forward")()
    for name in contestants.attention_names(compiled=True):
        contestants.attention_call(small, name, "forward")()
    ours, expanded, mhsa, *others = given
    if part == "gate":
        assert [one.function for one in (ours, expanded)] == [gate, contestants.expanded_gate]
    else:
        assert [type(one) for one in (ours, expanded)] == [BAM, contestants.ExpandedBAM]
    assert type(mhsa) is MHSA2d
    assert not any(isinstance(other, MHSA2d) for other in others)


def test_only_who_computes_the_same_is_compared() -> None:
    """timm's and lucidrains' layers pool a map of an odd side to less than half of it."""
    for size, stride in ((7, 2), (7, 1), (8, 2)):
        case = AttentionCase(size, 2, stride=stride, channels=16)
        shapes = {
            contestants.attention_call(case, name, "forward")().shape  # type: ignore[attr-defined]
            for name in contestants.attention_names(False, case)
        }
        assert len(shapes) == 1
        assert (len(contestants.attention_names(False, case)) > 3) == (size == 8 or stride == 1)


def test_compiled_is_named_so() -> None:
    names = contestants.attention_names(compiled=True)
    assert names[0] == contestants.OURS
    assert {name.removesuffix(contestants.COMPILED) for name in names} == {
        *contestants.attention_names(False)
    }


def test_the_floor_is_the_products_counted_exactly() -> None:
    case = AttentionCase(6, 1, channels=16)
    flops, moved = case.floor("forward")
    tokens, d, h = 36, 4, 4
    assert flops == 2 * (tokens * 16 * 48 + h * (2 * tokens**2 * d + tokens * d * (11 + 11)))
    assert moved == 4 * (2 * tokens * 16 + 48 * 16)
    pooled, _ = AttentionCase(6, 1, channels=16, stride=2).floor("forward")
    assert flops - pooled == 2 * h * tokens**2 * d * 3 // 4
    assert case.floor("forward+backward")[0] == 3 * flops
