"""The same run again and again, each in a process of its own, ends with the same bits."""

import json
import subprocess
import sys

import pytest
import yaml
from fault_cases import LONG
from test_kills import TINY

SHORT = ["--epochs", "1", "--data.train-size", "160", "--data.val-size", "32"]


def digest(folder):
    """The weights' digest of a tiny run in a process of its own."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "attneck", "train", "tiny.yaml", *SHORT, "--out", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run/summary.json").read_text())["weights"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return digest(tmp_path_factory.mktemp("first"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(200) if LONG else [])  # test_kills compares a few processes
def test_a_run_ends_with_one_digest(tmp_path, first, number):
    assert digest(tmp_path) == first
