"""Fixtures and marks that every test shares."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: small steps are many times slower when threads fight

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot show: `data` without ATTNECK_DATA, `gpu` without CUDA."""
    for item in items:
        if item.get_closest_marker("data") and not os.environ.get("ATTNECK_DATA"):
            item.add_marker(pytest.mark.skip(reason="ATTNECK_DATA is not set"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA"))


def pytest_collection_finish() -> None:
    """What has been imported stays: no later collection looks at it, and no fork copies its pages."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries look at the end whether anything of theirs is left, and say so."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def forks_may_train() -> None:
    """At its first backward pass autograd starts a thread for each device that it knows of, and with one a
    fork may not train. A GPU that a test only pretends to have would be known: so the first is here."""
    import torch

    if not torch.cuda.is_available():
        torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True, scope="session")
def without_pictures() -> Iterator[None]:
    """A run's pictures take a second or two; test_pictures.py and test_report.py in tests/runs draw them."""
    from attneck.runs import pictures, snapshots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_pictures", lambda folder, task, facts: None)
        patch.setattr(snapshots.Snapshots, "take", lambda self, step, network: None)
        yield
