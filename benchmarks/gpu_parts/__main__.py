"""benchmarks/gpu: what only a GPU can tell, in the order of what matters, in the minutes that there are.

Each part runs in a process of its own, in its share of the time, and writes FOLDER/PART.json after each row.
The same command with the same FOLDER goes on from there; a part whose file is removed is done again. A part
that fails, hangs or crashes is said and left; the next one runs. SIGTERM, or a kill, loses the row that is
under way.

It runs from a copy of the repository: nothing is built or downloaded. Python 3.11 or later needs torch with
CUDA and Triton, torchvision, timm, and what pyproject.toml lists beside them (pydantic, tyro, rich,
safetensors, faster-coco-eval ...); pytest and hypothesis for part "tests"; bottleneck-transformer-pytorch to
compare with; a C compiler for torch.compile. What is missing is said. ATTNECK_DATA is the folder that holds
cifar-100-python.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from attneck.errors import UserError, ending

from .apart import Work, apart
from .kept import DONE, Job, Kept


class Part(NamedTuple):
    """A module with `work` and `lines`; its share of the time, over that of the parts after it."""

    module: str
    share: float
    what: str


PARTS = {
    "tests": Part("cuda_tests", 2.5, "the tests that need CUDA"),
    "attention": Part("attention", 4.0, "attention, 7x7 to 128x128, every backend and three others"),
    "thresholds": Part("thresholds", 0.5, "the table of the backends' limits from it, as a patch"),
    "steps": Part("steps", 3.0, "training steps at 224, 1024 and 1280, eager and compiled"),
    "table14": Part("table14", 2.0, "forward and backward of BoTNet's Table 14"),
    "cifar": Part("cifar", 2.0, "CIFAR-100, ResNet-50 with and without BAM"),
}


def main(words: list[str] | None = None) -> int:
    """The exit code: 0 where nothing failed, 1 where a part did, 2 for a mistake in the command."""
    arguments = _arguments(words)
    try:
        if not 0 < arguments.minutes < 1e4:
            raise UserError(f"--minutes {arguments.minutes}: wanted a number above 0")
        arguments.out = arguments.out.absolute()
        arguments.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        states = run(arguments)
    except (UserError, OSError) as error:
        code, line = ending(error)
        print(f"attneck: {line}", file=sys.stderr)
        return code
    for line in summary(arguments.out, states):
        print(line)
    return 1 if "failed" in states.values() else 0


def run(arguments: argparse.Namespace) -> dict[str, str]:
    """Every part that is asked for and not done; the state of each."""
    # The system is asked for its GPUs then, not CUDA: a process that has used CUDA can't be forked.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Loaded once, for all processes that are forked from here; what can't be is its part's to say.
    for module in ("torch._dynamo", *(f"{__package__}.{part.module}" for part in PARTS.values())):
        with suppress(Exception):
            import_module(module)
    if arguments.device == "cuda" and not _has_cuda():
        raise UserError(
            "this machine has no CUDA device that torch can use: --device cpu --tiny tries all out"
        )
    until = time.monotonic() + 60 * arguments.minutes
    states = {
        name: _state(arguments.out / f"{name}.json") for name in PARTS if name in (arguments.only or PARTS)
    }
    todo = [name for name, state in states.items() if state != DONE]
    for number, name in enumerate(todo):
        left = until - time.monotonic()
        if left <= 0:
            break
        weights = [PARTS[other].share for other in todo[number:]]
        box = left * weights[0] / sum(weights)
        job = Job(arguments.out, arguments.device, arguments.tiny, time.monotonic() + box, arguments.runs)
        print(f"\n== {name}: {PARTS[name].what}; {box:.0f} s", flush=True)
        states[name] = apart(name, _work(PARTS[name]), job)
    return states


def summary(out: Path, states: dict[str, str]) -> Iterator[str]:
    """What every part found, and what is left."""
    for name, state in states.items():
        file = out / f"{name}.json"
        if not file.exists():
            continue
        document = json.loads(file.read_bytes())
        yield f"\n== {name}: {state}{': ' * bool(document.get('why'))}{document.get('why', '')}"
        try:
            yield from list(import_module(f".{PARTS[name].module}", __package__).lines(document))
        except Exception as error:  # what was measured is in the file all the same
            yield f"  {file} can't be told: {type(error).__name__}: {error}"
        if len(digests := {row["sources"] for row in document["rows"].values()}) > 1:
            yield f"  its rows are of {len(digests)} versions of the sources: remove {file} to do it again"
    left = [name for name, state in states.items() if state != DONE]
    yield f"\nleft: {', '.join(left)}; the same command goes on" if left else "\nnothing is left"


def _work(part: Part) -> Work:
    """Imported where it runs: what is missing for one part is no other's trouble."""

    def work(kept: Kept, job: Job) -> bool:
        return bool(import_module(f".{part.module}", __package__).work(kept, job))

    return work


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = "\n".join(f"  {name:<11}{part.what}" for name, part in PARTS.items())
    parser.epilog = f"parts:\n{parts}"
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the documents")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="for all parts together; a last row may overrun"
    )
    parser.add_argument("--only", choices=list(PARTS), action="append", help="this part; may be given again")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="sizes that show that everything runs, and no more"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), metavar="FOLDER", help="of part cifar")
    return parser.parse_args(words)


def _state(file: Path) -> str:
    try:
        return str(json.loads(file.read_bytes())["state"])
    except FileNotFoundError:
        return "not begun"
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is no document of this command: move it away") from None


def _has_cuda() -> bool:
    process = get_context("fork").Process(target=_ask)
    process.start()
    process.join()
    return process.exitcode == 0


def _ask() -> None:
    import torch

    os._exit(0 if torch.cuda.is_available() else 1)


if __name__ == "__main__":
    sys.exit(main())
