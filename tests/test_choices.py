"""benchmarks/choices.py, tiny: both ways of every choice run, and compute the same."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from attneck.attention.cpu import choice, passes
from attneck.layers import MHSA2d

FILE = Path(__file__).parents[1] / "benchmarks" / "choices.py"


@pytest.fixture(scope="module")
def choices():
    spec = importlib.util.spec_from_file_location("choices", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_ways_of_every_choice_compute_the_same(choices, monkeypatch) -> None:
    if not choice.onednn_works() or passes.trouble():
        pytest.skip("one of the ways is not there")
    for module in (choices.tiles, choices.cpu):
        monkeypatch.setattr(module, "KEEP", 100)  # 16x16 is a large map
    for this, that, pairs in choices.choices().values():
        assert this != that
        for case, *overrides in pairs:
            small = dataclasses.replace(
                case, size=16 if case.stride == 2 else 8, batch=2, channels=32, dtype="float32"
            )
            torch.manual_seed(0)
            layer = MHSA2d(small.channels, small.size, heads=small.heads, stride=small.stride)
            torch.nn.init.normal_(layer.qkv.weight, std=0.3)  # as it starts, it weights all places alike
            x = torch.randn(small.batch, small.channels, small.size, small.size)
            leaves = [x.to(memory_format=torch.channels_last).requires_grad_(), *layer.parameters()]
            results = []
            for override in overrides:
                with choices.choosing({**override, **({"logits": 300} if "logits" in override else {})}):
                    out = layer(leaves[0])
                    direction = torch.linspace(-1, 1, out.numel()).view_as(out)
                    results.append([out, *torch.autograd.grad(out, leaves, direction)])
                choices.call(small, override)()
            for one, other in zip(*results, strict=True):
                assert one.any()
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()))


def test_the_table_of_products_names_the_processor_and_both_libraries(choices, monkeypatch) -> None:
    monkeypatch.setattr(choices, "processor", lambda: {"vendor_id": "x", "flags": "avx512f"})
    lines = [*choices.products(0.0)]
    assert lines[:2] == ["vendor_id x", f"AVX-512: True. Chosen: {choice.float32_products()}."]
    assert len(lines) == 5 + 6
