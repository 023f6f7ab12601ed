"""benchmarks/choices.py, tiny: both ways of every choice run, and compute the same."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from attneck.attention.cpu import choice, passes
from attneck.measure.contestants import OURS, attention_call

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
    monkeypatch.setattr(choices.tiles, "KEEP", 100)  # 16x16 is a large map
    for this, that, pairs in choices.choices().values():
        assert this != that
        for case, *overrides in pairs:
            small = dataclasses.replace(
                case, size=16 if case.stride == 2 else 8, batch=2, channels=32, dtype="float32"
            )
            torch.manual_seed(0)
            inside = attention_call(small, OURS, "forward")
            results = []
            for override in overrides:
                with choices.choosing({**override, **({"logits": 300} if "logits" in override else {})}):
                    results.append(inside())
                choices.call(small, override)()
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_the_table_of_products_names_the_processor_and_both_libraries(choices, monkeypatch) -> None:
    monkeypatch.setattr(choices, "processor", lambda: {"vendor_id": "x", "flags": "avx512f"})
    lines = [*choices.products(0.0)]
    assert lines[:2] == ["vendor_id x", f"AVX-512: True. Chosen: {choice.float32_products()}."]
    assert len(lines) == 5 + 6
