"""A run's figures, read by TensorBoard's own reader."""

from pathlib import Path

import pytest
from small_run import ALONE, Doing, Task, recipe, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attneck.training.events import Events


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by tag: steps and values."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    events = Events(tmp_path / "tensorboard", 0)
    events.add(3, {"val/loss": 2.5, "val/top1": 12.0})
    events.add(6, {"val/loss": 1.25})
    assert read(tmp_path / "tensorboard") == {"val/loss": [(3, 2.5), (6, 1.25)], "val/top1": [(3, 12.0)]}


@pytest.mark.parametrize(("step", "evaluating"), [(1, False), (2, False), (3, False), (2, True), (5, True)])
def test_a_run_that_was_stopped_shows_what_one_does_that_was_not(
    tmp_path: Path, step: int, evaluating: bool
) -> None:
    """Stopped before, at and after the record of an epoch, which has three steps, and while it is scored."""

    def stop() -> None:
        raise KeyboardInterrupt

    run(tmp_path / "whole", recipe(), Task(ALONE))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", recipe(), Doing(step, stop, evaluating=evaluating))
    run(tmp_path / "stopped", recipe(), Task(ALONE), resume=True)
    whole, stopped = (read(tmp_path / name / "tensorboard") for name in ("whole", "stopped"))
    assert [at for at, _ in whole["val/mean"]] == [3, 6]
    assert stopped.keys() == whole.keys()
    for tag in whole.keys() - {"seconds", "peak/gib"}:
        assert stopped[tag] == whole[tag], tag
