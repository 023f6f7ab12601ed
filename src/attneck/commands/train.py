"""attneck train: a recipe, with any of its fields changed, becomes a run."""

from __future__ import annotations

import os
import shlex
import signal
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck import signals
from attneck.checks import divides, whole
from attneck.commands.recipe_words import Arguments, parse
from attneck.errors import RunFailed, UserError, brief, is_first, say
from attneck.models import catalog
from attneck.runs.folder import newest_folder, writing
from attneck.runs.lock import LOCK, only_one
from attneck.runs.report import REPORT
from attneck.training.recipe import TIMM, Recipe
from attneck.training.recipe_file import is_run, load_recipe, shipped_recipes
from attneck.training.trackers import require

if TYPE_CHECKING:
    from attneck.runs.train import Summary

USAGE = """usage: attneck train RECIPE [--resume] [--out FOLDER] [--any.field VALUE …]

RECIPE is a YAML file, the folder of a run, or one of the shipped recipes:
{shipped}
attneck train RECIPE --help shows every field with its value there.
Several processes on this machine: --processes N.
On many machines: torchrun … -m attneck train …"""


def main(words: list[str]) -> None:
    """Parse, refuse what can be refused without torch, train, and say where the run is."""
    if not words or words[0].startswith("-"):
        if words and words[0] not in {"-h", "--help"}:
            raise UserError(f"the recipe comes first: attneck train RECIPE {' '.join(words)}")
        shipped = textwrap.indent(
            textwrap.fill(", ".join(shipped_recipes()), 76, break_on_hyphens=False), "  "
        )
        print(USAGE.format(shipped=shipped))
        return
    name = words[0]
    arguments = parse(name, words[1:])
    _check(arguments)
    out = arguments.out
    if out is None and is_run(Path(name)):
        out = Path(name)
    elif out is None and arguments.resume:
        out = newest_folder(Path(name).stem)
    if "WORLD_SIZE" in os.environ:
        # PyTorch's C++ warns, in each process, of what `train_loop` asks of DistributedDataParallel.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    else:
        if out is not None:
            _free(out)
        if arguments.processes > 1:
            launch(["train", *words], arguments.processes)
            return
    _say_epochs(name, arguments.recipe)

    from attneck.runs.train import train

    summary = train(
        arguments.recipe,
        out,
        name=Path(name).stem,
        resume=arguments.resume,
        accept_changes=arguments.accept_changes,
        verbose=arguments.verbose,
    )
    if is_first():
        _say(summary, arguments.recipe.patience)


def _check(arguments: Arguments) -> None:
    """UserError for what neither torch nor the data are needed to refuse."""
    model, processes = arguments.recipe.model, arguments.processes
    try:
        whole("--processes", processes, most=max(16, os.cpu_count() or 1))
        if not model.name.startswith(TIMM):
            try:
                catalog.find(model.name, dict(model.options))
            except ValueError as error:
                of_timm = "" if model.name in catalog.CATALOG else f"; a network of timm's is {TIMM}NAME"
                raise ValueError(f"{error}{of_timm}") from None
        require(arguments.recipe)
        divides(arguments.recipe.batch, processes, arguments.recipe.accumulate)
    except ValueError as error:
        raise UserError(str(error)) from None
    if model.weights is not None and not arguments.resume and not os.path.exists(model.weights):
        raise UserError(f"{brief(model.weights)}: there is no such file")  # before data is drawn
    if arguments.verbose and model.weights is None and model.pretrained is None:
        raise UserError(
            "--verbose names tensors of model.weights or model.pretrained: give one, or leave it out"
        )
    if processes > 1 and os.environ.get("WORLD_SIZE", str(processes)) != str(processes):
        raise UserError(
            f"--processes {processes} starts them itself, and WORLD_SIZE {os.environ['WORLD_SIZE']} says "
            "that another program does: leave --processes out, or unset WORLD_SIZE and RANK"
        )


def _say_epochs(name: str, recipe: Recipe) -> None:
    """Of a recipe of steps that is counted in epochs here: what its warm-up and milestones became."""
    if recipe.steps is not None or load_recipe(name).steps is None:
        return
    schedule = recipe.schedule
    marks = ", ".join(f"{mark:.3g}" for mark in schedule.milestones)
    say(
        f"{name} counts in epochs here: {recipe.epochs or 1}, "
        f"{schedule.warmup_epochs:.3g} of warm-up{f', milestones {marks}' * bool(marks)}",
        once=True,
    )


def _say(summary: Summary, patience: int | None) -> None:
    """Where the run is, and what may come next."""
    from attneck.training.report import in_words

    if summary.early:
        print(f"ended   early: {patience} scorings in a row were no better (patience)")
    print(f"run     {summary.folder}  ({summary.steps} steps, weights {summary.weights})")
    if (best := summary.best) is not None:
        print(f"best    step {best.step}, {in_words({best.key: best.score})[0]}  (--checkpoint best)")
    run = shlex.quote(str(summary.folder))
    print(f"next    attneck eval {run}")
    if (report := summary.folder / REPORT).is_file():
        print(f"report  {report}  (open it in a browser; attneck report makes it again)")
    print(f"page    attneck serve {run}  (what it looks at, under the pointer)")
    print(f"curves  attneck curves {run}  (or tensorboard --logdir {run})")


def _free(folder: Path) -> None:
    """Refuse a folder that another program trains in, before torch is imported."""
    with writing(folder):
        if (folder / LOCK).is_file():
            with only_one(folder):
                pass


def launch(words: list[str], processes: int) -> None:
    """Run `attneck WORDS` as `processes` processes under torch's launcher, and end as they end.

    Raises:
        RunFailed: with the exit code of the first process that failed, or 128 + the signal's number; what it
            was about is said by the process itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    def pass_on(number: int, frame: Any) -> None:
        raise SignalException("", signal.Signals(number))  # torch's launcher sends it to the processes

    # torch's own handlers also raise on a second signal, and then leave the processes behind.
    alone = ["--standalone", "--nproc-per-node", str(processes), "--signals-to-handle", "SIGQUIT"]
    try:
        with signals.noted(pass_on):
            torchrun([*alone, "-m", "attneck", *words])
    except SignalException as stop:
        raise RunFailed(f"{processes} processes stopped by {stop.sigval.name}", 128 + stop.sigval) from None
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        killed = first.exitcode == -signal.SIGKILL  # else it said itself what to do
        hint = ": go on from the last checkpoint, where there is one, with --resume" * killed
        raise RunFailed(f"process {rank} of {processes} ended with code {code}{hint}", code) from None
