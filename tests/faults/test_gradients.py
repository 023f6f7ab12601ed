"""A gradient that is not finite moves no weight and is named; a resumed run ends as if there were none."""

import re
from itertools import product

import pytest
from fault_cases import LONG, some
from small_run import ALONE, At, Task, digest, recipe, run, tensors
from two_small_runs import two_processes

from attneck.errors import RunFailed
from attneck.training import checkpoint, loop

STEPS = {"first": 0, "third": 2, "last": 5}
PARTS = {"whole": (1, 0), "first-half": (2, 0), "second-half": (2, 1)}
GRID = list(
    product(["nan", "inf"], ["float32", "bfloat16"], [None, 0.5], PARTS, STEPS, ["at-once", "on-the-device"])
)
whole: dict[str, str] = {}
"""The end of a run that nothing disturbs, by its recipe."""


@pytest.mark.parametrize(
    ("how", "precision", "clip", "part", "step", "read"), some(GRID, 8), ids=lambda value: str(value)
)
def test_alone(tmp_path, monkeypatch, how, precision, clip, part, step, read):
    monkeypatch.setattr(loop, "reads_at_once", lambda device: read == "at-once")
    accumulate, number = PARTS[part]
    wanted = recipe(
        accumulate=accumulate, precision=precision, optimizer={"lr": 0.1, "clip_norm": clip}, ema=0.5
    )
    key = f"{wanted} {read}"
    if key not in whole:
        run(tmp_path / "whole", wanted, Task(ALONE))
        whole[key] = digest(checkpoint.load_latest(tmp_path / "whole/checkpoints")[0])
    with pytest.raises(RunFailed) as end:
        run(tmp_path / "run", wanted, Task(ALONE, how, At(STEPS[step], part=number)))
    said = str(end.value)
    micro = f", micro-batch {number + 1} of 2" if accumulate == 2 else ""
    at = STEPS[step]
    assert said.startswith(f"step {at + 1} (epoch {at // 3 + 1}, batch {at % 3 + 1}{micro}): the loss is "), (
        said
    )
    assert re.search("first that of conv.(weight|bias)[.]", said)  # one operation's, in whatever order
    assert end.value.code == 1
    assert len(said.splitlines()) == 1
    assert len(said) <= 400
    if at:
        newest = checkpoint.load_latest(tmp_path / "run/checkpoints")[0]
        assert newest["step"] == at
        assert all(tensor.isfinite().all() for tensor in tensors(newest).values())
        assert f"step-{at:08d}.pt is whole" in said
    else:
        assert not checkpoint.checkpoints(tmp_path / "run/checkpoints")
        assert "there is no checkpoint yet" in said
    run(tmp_path / "run", wanted, Task(ALONE), resume=at > 0)
    assert digest(checkpoint.load_latest(tmp_path / "run/checkpoints")[0]) == whole[key]


RANKS = {
    f"{how}-rank{rank}-part{part}-step{step}": [how, step, part, rank]
    for how, rank, part, step in product(["nan", "inf"], [0, 1], [0, 1], [0, 3, 5])
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return two_processes(tmp_path_factory.mktemp("two"), "grid")


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="tests/training/test_finite.py has it in short")
@pytest.mark.parametrize("case", RANKS)
def test_one_rank_of_two(of_two, case):
    _, step, part, rank = RANKS[case]
    found = of_two[case]
    first, second = found["messages"]
    assert first == second
    at = f"epoch {step // 3 + 1}, batch {step % 3 + 1}, rank {rank}, micro-batch {part + 1} of 2"
    assert first.startswith(f"step {step + 1} ({at}): "), first
    assert found["newest"] == (step or None)
    assert found["codes"] == [1, 1]
    assert found["finite"]
    assert found["same_end"]
