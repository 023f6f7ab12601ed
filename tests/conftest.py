"""Fixtures and marks that every test shares."""

import os
import subprocess
import sys
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: small steps are many times slower when threads fight

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot show: `data` without ATTNECK_DATA, `gpu` without CUDA."""
    for item in items:
        if item.get_closest_marker("data") and not os.environ.get("ATTNECK_DATA"):
            item.add_marker(pytest.mark.skip(reason="ATTNECK_DATA is not set"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA"))


@pytest.fixture
def attneck(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `attneck WORDS` in a folder of its own, as a user would; gives what it printed and its exit code."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "attneck.cli", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
