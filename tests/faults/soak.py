"""A run that is disturbed for hours, beside the same run left alone: `make soak`.

Every few minutes the disturbed run gets SIGTERM, SIGINT, kill -9, or STOP and later CONT, and goes on with
--resume where that ended it. Whatever both runs saved at the same step must be equal: the weights, the
optimizer's state, and every record of the history but its seconds and its memory.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attneck.files import write_atomic
from attneck.training.checkpoint_files import checkpoints
from attneck.training.environment import environment

FAULTS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP]
# In float32: in two hours a processor that emulates bfloat16 gets through a few steps, not through epochs.
DEFAULT = ["cifar100-lab", "--precision", "float32", "--checkpoint-minutes", "1"]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}


def start(recipe: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The run in `folder`, from the beginning or from its newest checkpoint."""
    resume = ["--resume"] if checkpoints(folder / "checkpoints") else []
    command = [sys.executable, "-m", "attneck", "train", *recipe, "--out", str(folder), *resume]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


PARTS = ("step", "sums", "history", "model", "optimizer", "average")


def contents(state: dict[str, Any]) -> tuple[str, ...]:
    """A digest of each part of a checkpoint, but for the seconds and the memory that a record took."""
    return tuple(digest_of(state[name]) for name in PARTS)


def digest_of(part: Any) -> str:
    """Of whatever a checkpoint holds."""
    sums = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sums.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if key not in {"seconds", "peak_gib"}:
                    sums.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            sums.update(repr(value).encode())

    add(part)
    return sums.hexdigest()[:16]


@dataclass
class Watched:
    """A run's folder, and the digests of all the checkpoints that were seen in it."""

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    """Time of change by name, to read each file once."""
    digests: dict[tuple[int, int], set[tuple[str, ...]]] = field(default_factory=dict)
    """By step and number of records: an epoch's last step is saved before and after its evaluation."""

    def look(self) -> None:
        """Read the checkpoints that are new."""
        for path in checkpoints(self.folder / "checkpoints"):
            try:
                changed = path.stat().st_mtime_ns
                if self.files.get(path.name) == changed:
                    continue
                state = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
            except FileNotFoundError:  # newer ones have taken its place
                continue
            self.files[path.name] = changed
            self.digests.setdefault((state["step"], len(state["history"])), set()).add(contents(state))


def soak(recipe: list[str], out: Path, hours: float, seed: int, quiet: tuple[float, float]) -> dict[str, Any]:
    """Disturb one of two runs for so long; what was done to it, and how many common steps are equal."""
    draw = random.Random(seed)
    if out.exists():
        raise SystemExit(f"{out} is there already: give another --out, or remove it")
    alone, disturbed = Watched(out / "alone"), Watched(out / "disturbed")
    left, victim = start(recipe, alone.folder), start(recipe, disturbed.folder)
    done: Counter[str] = Counter()
    codes: list[str] = []
    began = time.monotonic()
    end = began + 3600 * hours
    due = began + draw.uniform(*quiet)

    def watch(until: float) -> None:
        while time.monotonic() < until:
            alone.look()
            disturbed.look()
            time.sleep(2)

    while time.monotonic() < end:
        watch(min(due, end))
        fault = draw.choice(FAULTS)
        victim.send_signal(fault)
        done[fault.name] += 1
        if fault == signal.SIGSTOP:
            watch(time.monotonic() + draw.uniform(5, 30))
            victim.send_signal(signal.SIGCONT)
        else:
            code = victim.wait()
            if code != CODES[fault]:
                codes.append(f"{fault.name}: {code}, not {CODES[fault]}")
            watch(time.monotonic() + 1)
            victim = start(recipe, disturbed.folder)
        due = time.monotonic() + draw.uniform(*quiet)
    for run in (left, victim):
        run.terminate()
        run.wait()
    alone.look()
    disturbed.look()
    common = sorted(alone.digests.keys() & disturbed.digests.keys())
    seen = {at: alone.digests[at] | disturbed.digests[at] for at in common}
    different = [
        {
            "step": step,
            "records": records,
            "parts": [
                name for name, each in zip(PARTS, zip(*found, strict=True), strict=True) if len({*each}) > 1
            ],
        }
        for (step, records), found in seen.items()
        if len(found) > 1
    ]
    return {
        "recipe": recipe,
        "hours": hours,
        "seed": seed,
        "faults": dict(done),
        "unexpected_exit_codes": codes,
        "last_step": {"alone": max(alone.digests)[0], "disturbed": max(disturbed.digests)[0]},
        "checkpoints_compared": len(common),
        "checkpoints_equal": len(common) - len(different),
        "different": different,
        "last_step_compared": common[-1][0] if common else None,
        "weights_there": sorted({each[PARTS.index("model")] for each in seen[common[-1]]})
        if common
        else None,
        "environment": environment() | {"command": " ".join(["python", *sys.argv])},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", type=float, nargs=2, default=(45, 240), help="seconds between two faults")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--result", type=Path, default=Path("results/faults/soak.json"))
    parser.add_argument("recipe", nargs="*", default=DEFAULT)
    given, recipe = parser.parse_known_args()
    found = soak(given.recipe + recipe, given.out, given.hours, given.seed, tuple(given.quiet))
    print(json.dumps(found, indent=1))
    given.result.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(given.result, (json.dumps(found, indent=1) + "\n").encode())
    sys.exit(not found["checkpoints_compared"] or found["checkpoints_equal"] < found["checkpoints_compared"])
