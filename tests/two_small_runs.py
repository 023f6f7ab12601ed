"""Not a test: small runs in two processes, broken off and gone on with."""

from itertools import product
from pathlib import Path
from typing import Any

from forked import as_ranks
from small_run import At, Task, digest, history, recipe, run, tensors

from attneck.errors import RunFailed
from attneck.training import checkpoint
from attneck.training.distributed import World, world


def end(folder: Path) -> tuple[str, list[dict]]:
    """Of the newest checkpoint, the digest of its tensors, and its records."""
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    return digest(state), history(state)


def broken_off(folder: Path, wanted, task: Task, everyone: World) -> dict:
    """Run until it fails; what all processes say, and how it goes on without the fault."""
    try:
        run(folder, wanted, task, world=everyone)
        messages = everyone.joined(["ended"])
        codes = everyone.joined([0])
    except RunFailed as failed:
        messages = everyone.joined([str(failed)])
        codes = everyone.joined([failed.code])
    begun = bool(checkpoint.checkpoints(folder / "checkpoints"))
    state = checkpoint.load_latest(folder / "checkpoints")[0] if begun else {"step": None, "history": []}
    report = {
        "messages": messages,
        "codes": codes,
        "newest": state["step"],
        "records": len(state["history"]),
        "evaluated": everyone.joined([task.evaluated]),
        "finite": all(bool(tensor.isfinite().all()) for tensor in tensors(state).values()),
    }
    everyone.maximum([0.0])
    run(folder, wanted, Task(everyone), resume=begun, world=everyone)
    everyone.maximum([0.0])
    return report | {"same_end": end(folder) == end(folder.parent / "whole")}


def two_processes(folder: Path, kind: str) -> dict[str, Any]:
    """What becomes of the runs of a kind: faults, grid or stops."""
    return as_ranks(_runs, folder, kind)[0]


def _runs(folder: Path, kind: str) -> dict[str, Any]:
    with world() as everyone:
        wanted = recipe(accumulate=2, ema=0.5)
        run(folder / "whole", wanted, Task(everyone), world=everyone)
        everyone.maximum([0.0])
        found = {}
        if kind == "faults":
            for how in ("nan", "output", "constant"):
                task = Task(everyone, how, At(3, part=1, rank=1))
                found[how] = broken_off(folder / how, wanted, task, everyone)
        elif kind == "grid":
            for how in ("nan", "inf"):
                for rank, part, step in product((0, 1), (0, 1), (0, 3, 5)):
                    name = f"{how}-rank{rank}-part{part}-step{step}"
                    task = Task(everyone, how, At(step, part, rank))
                    found[name] = broken_off(folder / name, wanted, task, everyone)
        else:
            for name, ranks in (("one", [1]), ("both", [0, 1])):
                task = Task(everyone)
                task.signal_after = 2 if everyone.rank in ranks else None
                found[name] = broken_off(folder / name, wanted, task, everyone)
        return found
