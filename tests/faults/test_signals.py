"""A signal, whatever the program is doing: the step is saved, the exit code 128 + its number, no traceback.

The cases of one process are forks of this one, which has torch already. Each of them stops at one place
until it is signalled, for longer than it may take to end.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.utils.data
import yaml
from fault_cases import LONG, some
from forked import Forked
from test_kills import TINY as LARGER

from attneck import signals
from attneck.runs import train as runs
from attneck.tasks.classification import Classification
from attneck.training import checkpoint, loop, scoring
from attneck.training.recipe import Recipe

TINY = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "train_size": 96, "val_size": 20, "image_size": 24},
    "batch": 32,
    "pictures": False,
    "epochs": 2,
}
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LONG_TIME, A_WHILE = 60, 1.5
"""Seconds: of what may be broken off, and of what must come to its end."""


@pytest.fixture(autouse=True)
def hearing():
    """SIGHUP as it is in a terminal: under nohup it is ignored, and what is started here ignores it too."""
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


def busy():
    """How many programs share a core of this machine, 1 at least: all that long everything takes."""
    return max(1, os.getloadavg()[0] / os.cpu_count())


def named(value):
    """SIGTERM-SIGINT for a case's signals; others as they are."""
    numbers = value if isinstance(value, tuple) else (value,)
    return "-".join(getattr(number, "name", str(number)) for number in numbers)


def slow(holder, name, seconds, at, when=lambda *given: True):
    """`holder.name` says that it has begun, and takes so long."""
    plain = getattr(holder, name)

    def slowly(*given, **options):
        if when(*given):
            os.write(at, b".")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.1)
        return plain(*given, **options)

    setattr(holder, name, staticmethod(slowly) if name in ("build", "predict") else slowly)


def both(some_cases, others):
    """Every pair in the long form; in the short one as few as try each of them once."""
    one, other = [*some_cases], [*others]
    if LONG:
        return [*product(one, other)]
    return [(one[n % len(one)], other[n % len(other)]) for n in range(max(len(one), len(other)))]


def second_step(*given):
    return given[-1] == 1


START = {
    "data": lambda at: slow(runs, "open_task", LONG_TIME, at),
    "model": lambda at: slow(Classification, "build", LONG_TIME, at),
    "folder": lambda at: slow(runs, "_start_once", LONG_TIME, at),
}
PHASES = {
    **START,
    "step": lambda at: slow(loop, "gradients", A_WHILE, at, second_step),
    "evaluation": lambda at: slow(torch.utils.data.DataLoader, "__iter__", LONG_TIME, at, of_held_out),
    "scores": lambda at: slow(scoring, "scored", LONG_TIME, at),
    "saving": lambda at: slow(checkpoint.torch, "save", A_WHILE, at),
    "writing": lambda at: slow(os, "fsync", A_WHILE, at, of_a_checkpoint),
    "end": lambda at: slow(runs, "Summary", LONG_TIME, at),
    "report": lambda at: slow(Classification, "report", LONG_TIME, at),
    "predict": lambda at: slow(Classification, "predict", LONG_TIME, at),
}


def of_a_checkpoint(file):
    return ".step-" in os.readlink(f"/proc/self/fd/{file}")


def of_held_out(loader):
    return len(loader.dataset) == 20


class Stopped(Forked):
    """A fork, stopped in `phase`."""

    def __init__(self, folder, phase, words, prepare=lambda: None):
        self.reader, writer = os.pipe()
        super().__init__(folder, words, lambda: (prepare(), PHASES[phase](writer)))
        os.close(writer)

    def wait_for_phase(self):
        assert select.select([self.reader], [], [], 60)[0], self.said.read_text()
        assert os.read(self.reader, 1) == b".", self.said.read_text()

    def send(self, number):
        os.kill(self.pid, number)

    def ends(self, within):
        """The exit code, and the seconds that it took."""
        began = time.monotonic()
        while time.monotonic() < began + within:
            if self.ended():
                return self.code, time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"it goes on after {within} s: {self.said.read_text()}")

    def left(self):
        """Processes of its session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(stat.parent.name)
        return found

    def close(self):
        os.close(self.reader)
        self.kill()
        for pid in self.left():
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def forked(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    made = []

    def start(phase, *words, **options):
        made.append(Stopped(tmp_path, phase, words, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def lines(process):
    return [line for line in process.said.read_text().splitlines() if line.startswith("attneck: ")]


TRAIN = ("train", "tiny.yaml", "--out", "run")
SAVED = {"step": 2, "evaluation": 3, "writing": 3, "scores": 3, "saving": 3}
"""The step that is saved when a signal comes there."""


SENT = [(INT,), (TERM, TERM), (TERM,), (HUP,), (HUP, TERM)]


@pytest.mark.parametrize(
    ("phase", "numbers", "workers"),
    [(*case, workers) for workers in (["0", "2"] if LONG else ["2"]) for case in both(SAVED, SENT)]
    + ([] if LONG else [("writing", (TERM, TERM), "0")]),
    ids=named,
)
def test_the_step_is_saved(forked, tmp_path, phase, numbers, workers):
    process = forked(phase, *TRAIN, "--data.workers", workers)
    process.wait_for_phase()
    for number in numbers:
        process.send(number)
        time.sleep(0.3)
    code, took = process.ends(40 * busy())
    said = process.said.read_text()
    step = SAVED[phase]
    assert code == 128 + numbers[0], said
    assert not LONG or took < 10 * busy()
    stopped = (
        f"attneck: stopped by {numbers[0].name} at step {step} of 6, saved; go on with: attneck train run "
    )
    assert lines(process) == [f"{stopped}--resume"], said
    assert "Traceback" not in said
    assert process.left() == []
    assert checkpoint.load_latest(tmp_path / "run/checkpoints")[0]["step"] == step


@pytest.mark.parametrize(("phase", "number"), both(START, [INT, TERM, HUP]), ids=named)
def test_at_the_start_there_is_nothing_to_save(forked, tmp_path, phase, number):
    process = forked(phase, *TRAIN)
    process.wait_for_phase()
    process.send(number)
    code, took = process.ends(40 * busy())
    assert code == 128 + number
    assert not LONG or took < 10 * busy()
    assert lines(process) == [f"attneck: stopped by {number.name} before the first step"]
    assert process.said.read_text().count("\n") == 1
    assert process.left() == []


@pytest.mark.parametrize(
    ("phase", "numbers"), both(some(SAVED, 3), [(INT, INT), (TERM, INT), (HUP, INT)]), ids=named
)
def test_a_ctrl_c_after_the_first_signal_ends_at_once(forked, tmp_path, phase, numbers):
    process = forked(phase, *TRAIN, "--data.workers", "2")
    process.wait_for_phase()
    for number in numbers:
        process.send(number)
        time.sleep(0.3)
    code, took = process.ends(40 * busy())
    said = process.said.read_text()
    assert code == 130, said
    assert not LONG or took < 2 * busy()
    assert lines(process) == ["attneck: stopped by a second SIGINT"]
    assert "Traceback" not in said
    assert process.left() == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_the_end_itself_breaks_is_not_told(forked):
    """The training process sees its killed workers before it ends, and has nothing to say of them."""
    process = forked(
        "evaluation",
        *TRAIN,
        "--data.workers",
        "2",
        prepare=lambda: setattr(signals, "remove_unfinished", lambda: time.sleep(3)),
    )
    process.wait_for_phase()
    for number in (TERM, INT):
        process.send(number)
        time.sleep(0.3)
    assert process.ends(40 * busy())[0] == 130
    assert lines(process) == ["attneck: stopped by a second SIGINT"]


@pytest.mark.parametrize("signalled", [True, False])
def test_what_a_ctrl_c_breaks_in_a_step_is_no_fault_of_the_program(forked, signalled):
    """A terminal sends it to the compiler that torch.compile has started too, and that fails."""
    plain = loop.gradients

    def broken(*given):
        if second_step(*given):
            raise RuntimeError("the compiler was killed")
        return plain(*given)

    process = forked("step", *TRAIN, prepare=lambda: setattr(loop, "gradients", broken))
    process.wait_for_phase()
    if signalled:
        process.send(INT)
    code, _ = process.ends(40 * busy())
    said = process.said.read_text()
    assert (code, "Traceback" in said) == ((130, False) if signalled else (1, True)), said
    if signalled:
        wanted = "attneck: stopped by SIGINT in step 2, batch 32 (accumulate 1), images of 24 pixels; "
        assert lines(process) == [f"{wanted}there is no checkpoint yet"]


@pytest.mark.parametrize("phase", some(["data", "step", "evaluation", "saving"], 2))
def test_a_hangup_that_was_ignored_stays_so(forked, phase):
    """As nohup starts a program."""
    process = forked(phase, *TRAIN, prepare=lambda: signal.signal(HUP, signal.SIG_IGN))
    process.wait_for_phase()
    process.send(HUP)
    with pytest.raises(AssertionError, match="it goes on"):
        process.ends(1)
    process.send(TERM)
    assert process.ends(40 * busy())[0] == 143
    assert len(lines(process)) == 1


@pytest.mark.parametrize("number", [INT, TERM, HUP], ids=named)
def test_after_the_last_step(forked, tmp_path, number):
    process = forked("end", *TRAIN)
    process.wait_for_phase()
    process.send(number)
    assert process.ends(40 * busy())[0] == 128 + number
    assert lines(process) == [f"attneck: stopped by {number.name}"]
    assert checkpoint.load_latest(tmp_path / "run/checkpoints")[0]["step"] == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(Recipe.model_validate(TINY | {"epochs": 1}), folder)
    return folder


@pytest.mark.parametrize(("command", "number"), both(["eval", "predict"], [INT, TERM, HUP]), ids=named)
def test_other_commands(forked, tmp_path, trained, command, number):
    shutil.copytree(trained, tmp_path / "run")
    phase, more = {"eval": ("report", []), "predict": ("predict", ["--held-out", "2"])}[command]
    process = forked(phase, command, "run", *more)
    process.wait_for_phase()
    process.send(number)
    code, took = process.ends(40 * busy())
    assert code == 128 + number
    assert not LONG or took < 2 * busy()
    assert lines(process) == [f"attneck: stopped by {number.name}"]
    assert "Traceback" not in process.said.read_text()
    assert process.left() == []


class Started:
    """`attneck train WORDS`, started anew; its processes are known by what is in their environment."""

    def __init__(self, folder, *words, **options):
        (folder / "tiny.yaml").write_text(yaml.safe_dump(LARGER | {"epochs": 50, "checkpoint_steps": 1000}))
        self.token = f"TOKEN={uuid.uuid4()}"
        self.folder = folder
        self.said = folder / "said.txt"
        name, _, value = self.token.partition("=")
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "attneck", "train", "tiny.yaml", "--out", "run", *words],
                cwd=folder,
                stdout=out,
                stderr=out,
                env=os.environ | {name: value, "PYTHONUNBUFFERED": "1"},
                **options,
            )

    def processes(self):
        """Pid by rank of those that train, and of the others by their own number."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                around = path.read_bytes().decode(errors="replace").split("\0")
                state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
                if self.token in around and state != "Z":
                    rank = next(
                        (word for word in around if word.startswith("RANK=")), f"pid {path.parent.name}"
                    )
                    found.setdefault(rank, int(path.parent.name))
        return found

    def wait_for(self, words, within=120):
        end = time.monotonic() + within
        while words not in self.said.read_text():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < end, self.said.read_text()
            time.sleep(0.05)

    def nothing_is_left(self):
        end = time.monotonic() + 10 * busy()
        while self.processes():
            assert time.monotonic() < end, self.processes()
            time.sleep(0.1)

    def close(self):
        self.process.kill()
        self.process.wait()
        for pid in self.processes().values():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def started(tmp_path):
    made = []

    def start(*words, **options):
        made.append(Started(tmp_path, *words, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


DELAYS = [0.15 * number for number in range(40)]


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="the phases of the start are tried above, without the imports")
@pytest.mark.parametrize("number", [INT, TERM, HUP], ids=named)
@pytest.mark.parametrize("delay", DELAYS)
def test_at_any_moment_of_the_start(started, number, delay):
    run = started()
    time.sleep(0.2 * busy() + delay)  # Python itself starts before it can hear
    run.process.send_signal(number)
    code = run.process.wait(40 * busy())
    said = run.said.read_text()
    assert "Traceback" not in said
    assert code == 128 + number, said
    assert len([line for line in said.splitlines() if line.startswith("attneck: stopped by")]) == 1
    run.nothing_is_left()


TWO = [
    *product(["launcher", "RANK=0", "RANK=1"], [(TERM,), (INT,), (HUP,)], ["training"]),
    *product(["launcher"], [(INT, INT), (TERM, TERM), (TERM, INT), (signal.SIGKILL,)], ["training"]),
    *product(["launcher"], [(TERM,), (INT,), (HUP,)], [1.0, 3.0, 5.0, 7.0]),
]


@pytest.mark.parametrize(
    ("to", "numbers", "when"),
    [TWO[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in some(TWO[1:], 1))],
    ids=named,
)
def test_two_processes(started, tmp_path, to, numbers, when):
    run = started("--processes", "2", "--data.workers", "1")
    if when == "training":
        run.wait_for("epoch 1/")
    else:
        time.sleep(when)
    target = run.process.pid if to == "launcher" else run.processes()[to]
    for number in numbers:
        os.kill(target, number)
        time.sleep(0.3)
    began = time.monotonic()
    code = run.process.wait(40 * busy())
    took = time.monotonic() - began
    run.nothing_is_left()
    said = run.said.read_text()
    assert "Traceback" not in said, said
    at_once = numbers[-1] == INT and len(numbers) == 2
    if numbers == (signal.SIGKILL,):
        assert code == -signal.SIGKILL
    else:
        assert code == (130 if at_once else 128 + numbers[0]), said
        assert not LONG or took < (3 if at_once else 10) * busy()
    if when == "training" and not at_once:
        assert said.count("saved; go on with: attneck train run --resume") == 1, said
        step = checkpoint.load_latest(tmp_path / "run/checkpoints")[0]["step"]
        assert f"at step {step} of" in said
