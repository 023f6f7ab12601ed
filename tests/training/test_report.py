"""What a run shows of its progress: on 80 columns, without a terminal, and how long it will take."""

import io
import re
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from attneck.tasks.detection import HEADLINE
from attneck.training import report
from attneck.training.pace import SPAN, Pace, clock

LOSSES = {"classifier": 0.5, "box_reg": 0.25, "mask": 0.125, "objectness": 0.0625, "rpn_box_reg": 0.01}
MEANS = {"loss": 12.345, **{f"loss_{name}": value for name, value in LOSSES.items()}}
AP = {f"val_{kind}_{name}": 12.34 for kind in ("box", "mask") for name in HEADLINE}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(report, "Pace", partial(Pace, now=clock))
    return clock


def shown(folder, monkeypatch, now, width, terminal):
    """What is on the screen of a long run of a detector, at its third step and after its first epoch."""
    out = io.StringIO()
    console = Console(force_terminal=terminal, file=out, width=width, color_system=None)
    monkeypatch.setattr(report, "Console", lambda: console)
    monkeypatch.setattr(report, "QUIET", 1)
    with report.Report(
        folder, steps=270_000, steps_per_epoch=7_500, period=7_500, batch=16, start=0, history=[]
    ) as progress:
        for step in (1, 2, 3):
            now.time += 1.0
            progress.step(step, lambda: MEANS)
        drawn = Console(file=io.StringIO(), width=width, color_system=None)
        if progress.bar is not None:
            drawn.print(progress.bar.get_renderable())
        progress.step(7_500, lambda: MEANS)
        scores = {f"train_{name}": value for name, value in MEANS.items()} | AP
        progress.epoch([{"epoch": 1, "step": 7_500, "lr": 0.02} | scores | {"seconds": 400.0}])
    return drawn.file.getvalue(), out.getvalue()


def test_a_detectors_bar_fits_80_columns(tmp_path, monkeypatch, now):
    bar, _ = shown(tmp_path, monkeypatch, now, 80, True)
    (line,) = bar.rstrip("\n").split("\n")
    assert len(line.rstrip()) <= 80
    assert re.search(f"epoch 1/36 .{{{report.BAR},}} 3/270000 ", line)
    for part in ("epoch 1/36 ", " 3/270000 ", " 3d 02h left", " loss 12.345", " 16 images/s"):
        assert part in line, part
    wide, _ = shown(tmp_path, monkeypatch, now, 140, True)
    assert "loss classifier 0.500" in wide


def test_an_epochs_line_breaks_between_items(tmp_path, monkeypatch, now):
    _, screen = shown(tmp_path, monkeypatch, now, 80, True)
    told = screen[screen.rindex("epoch 1/36  lr") :].split("\x1b")[0].splitlines()
    told = [line.rstrip() for line in told if "━" not in line]
    assert max(map(len, told)) <= 80
    items = [item for line in told for item in line.strip().split("  ")]
    assert "train loss rpn box reg 0.010" in items
    assert "val mask AP75 12.34" in items
    assert "40,000 images/s" in items  # 7,500 steps in three seconds


def test_a_log_has_a_line_a_record(tmp_path, monkeypatch, now):
    _, log = shown(tmp_path, monkeypatch, now, 80, False)
    first, *_, last = log.splitlines()
    assert first == (
        "epoch 1/36  step 1/270000  loss 12.345  loss classifier 0.500  loss box reg 0.250  loss mask 0.125  "
        "loss objectness 0.062  loss rpn box reg 0.010  16 images/s  3d 02h left"
    )
    assert last.startswith("epoch 1/36  lr 0.02  train loss 12.345  ")
    assert last.endswith("seconds 400  40,000 images/s  1:45 left")


def test_the_time_left_has_the_evaluations_to_come():
    now = Clock()
    pace = Pace(10, 4, 0, [], now)  # scored after 4, 8 and 10
    assert pace.left() is None
    for step in (1, 2, 3, 4):
        now.time += 2
        pace.step(step)
    assert pace.left() == pytest.approx(6 * 2)  # how long an evaluation takes is not known
    now.time += 30
    assert pace.record(4) == pytest.approx(1 / 2)
    assert pace.left() == pytest.approx(6 * 2 + 2 * 30)
    now.time += 2
    pace.step(5)
    assert pace.left() == pytest.approx(5 * 2 + 2 * 30)  # and the speed is that of training
    for step in (6, 7, 8):
        now.time += 2
        pace.step(step)
    now.time += 10
    pace.record(8)
    assert pace.left() == pytest.approx(2 * 2 + 10)
    for step in (9, 10):
        now.time += 2
        pace.step(step)
    now.time += 10
    pace.record(10)
    assert pace.left() == 0


def test_a_resumed_run_counts_its_own_steps():
    """And knows of evaluations from the record of before."""
    now = Clock()
    history = [{"step": 100, "seconds": 5.0}, {"step": 200, "seconds": 100 * 0.5 + 7}]
    pace = Pace(400, 100, 250, history, now)
    assert pace.speed is None
    now.time += 0.5
    pace.step(251)
    assert pace.speed == pytest.approx(2)
    assert pace.left() == pytest.approx(149 * 0.5 + 2 * 7)


def test_the_speed_is_that_of_the_last_minute():
    now = Clock()
    pace = Pace(10**6, 10**6, 0, [], now)
    for step in range(1, 2001):
        now.time += 1.0 if step <= 1000 else 0.1
        pace.step(step)
    assert pace.speed == pytest.approx(10)
    assert len(pace.seen) < 200
    now.time += 3 * SPAN
    pace.step(2001)
    now.time += 3 * SPAN
    pace.step(2002)
    assert pace.speed == pytest.approx(1 / (3 * SPAN))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-:--"), (0.2, "0:00"), (59.7, "1:00"), (3723.4, "1:02:03"), (90_000, "1d 01h")],
)
def test_clock(seconds, said):
    assert clock(seconds) == said
