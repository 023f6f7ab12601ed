"""attneck train: a recipe, with any of its fields changed, becomes a run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import textwrap
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from attneck import signals
from attneck.checks import whole
from attneck.commands.arguments import Flag
from attneck.commands.arguments import parse as arguments_of
from attneck.errors import RunFailed, UserError, brief, is_first, say
from attneck.models import catalog
from attneck.models.options import own_and_backbones
from attneck.runs.folder import newest_folder, writing
from attneck.runs.lock import LOCK, only_one
from attneck.runs.report import REPORT
from attneck.training.recipe import TIMM, Recipe, no_rate
from attneck.training.recipe_file import changed, is_run, load_recipe, refusal, shipped_recipes
from attneck.training.trackers import require

USAGE = """usage: attneck train RECIPE [--resume] [--out FOLDER] [--any.field VALUE …]

RECIPE is a YAML file, the folder of a run, or one of the shipped recipes:
{shipped}
attneck train RECIPE --help shows every field with its value there.
Several processes on this machine: --processes N.
On many machines: torchrun … -m attneck train …"""


@dataclass
class Arguments:
    """Train what a recipe says."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder; runs/RECIPE, numbered where that is taken, if not given."""
    processes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes on this machine that share each batch, one a GPU where there are GPUs."""
    resume: Flag = False
    """Go on from the newest whole checkpoint of the run in --out (or of the run named as RECIPE)."""
    verbose: Flag = False
    """Name every tensor of model.weights or model.pretrained that was not simply taken."""
    accept_changes: Flag = False
    """With --resume: go on with data that has changed, and say how; otherwise it is refused."""


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
    recipe, out = arguments.recipe, arguments.out
    try:
        whole("--processes", arguments.processes, most=max(16, os.cpu_count() or 1))
        if not (model := recipe.model.name).startswith(TIMM):
            try:
                catalog.find(model, dict(recipe.model.options))
            except ValueError as error:
                of_timm = "" if model in catalog.CATALOG else f"; a network of timm's is {TIMM}NAME"
                raise ValueError(f"{error}{of_timm}") from None
        require(recipe)
    except ValueError as error:
        raise UserError(str(error)) from None
    if recipe.model.weights is not None and not arguments.resume and not os.path.exists(recipe.model.weights):
        raise UserError(f"{brief(recipe.model.weights)}: there is no such file")  # before data is drawn
    if arguments.verbose and recipe.model.weights is None and recipe.model.pretrained is None:
        raise UserError(
            "--verbose names tensors of model.weights or model.pretrained: give one, or leave it out"
        )
    if out is None and is_run(Path(name)):
        out = Path(name)
    elif out is None and arguments.resume:
        out = newest_folder(Path(name).stem)

    if arguments.processes > 1 and os.environ.get("WORLD_SIZE", str(arguments.processes)) != str(
        arguments.processes
    ):
        raise UserError(
            f"--processes {arguments.processes} starts them itself, and WORLD_SIZE "
            f"{os.environ['WORLD_SIZE']} says that another program does: leave --processes out, or unset "
            "WORLD_SIZE and RANK"
        )
    if "WORLD_SIZE" in os.environ:
        # PyTorch's C++ warns, in each process, of what `train_loop` asks of DistributedDataParallel.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    else:
        if out is not None:
            _free(out)
        if arguments.processes > 1:
            launch(["train", *words], arguments.processes)
            return
    schedule = recipe.schedule
    if recipe.steps is None and load_recipe(name).steps is not None:
        marks = ", ".join(f"{mark:.3g}" for mark in schedule.milestones)
        say(
            f"{name} counts in epochs here: {recipe.epochs or 1}, "
            f"{schedule.warmup_epochs:.3g} of warm-up{f', milestones {marks}' * bool(marks)}",
            once=True,
        )

    from attneck.runs.train import train
    from attneck.training.report import in_words

    summary = train(
        recipe,
        out,
        name=Path(name).stem,
        resume=arguments.resume,
        accept_changes=arguments.accept_changes,
        verbose=arguments.verbose,
    )
    if is_first():
        if summary.early:
            print(f"ended   early: {recipe.patience} scorings in a row were no better (patience)")
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


def parse(name: str, words: list[str], fields: Mapping[str, Any] | None = None) -> Arguments:
    """The recipe called `name` with the fields that `words` give, such as `--epochs 3`.

    Args:
        fields: other fields that the recipe has before, by their dotted names.

    Options of the model and of its surgery are added to the recipe's own, or put in their place; the value
    None takes one back. `--model.options.activation relu` is the same as `--model.options activation relu`.
    With epochs a recipe of steps is counted in these.

    Raises:
        UserError: no such recipe, or values that it cannot have.
    """
    whole = changed(load_recipe(name), fields or {}, name)
    epochs = _given(words, "epochs") or ""
    if _given(words, "steps") in (None, "None") and re.fullmatch("[1-9][0-9]{0,8}", epochs):
        whole = whole.in_epochs(int(epochs))
    own = {"options": whole.model.options, "surgery_options": whole.model.surgery_options}
    bare = whole.model_copy(update={"model": whole.model.model_copy(update={part: {} for part in own})})
    try:
        arguments = arguments_of(
            Arguments,
            f"attneck train {name}",
            gathered(words),
            default=Arguments(recipe=bare),
            description=" ".join(["Train what a recipe says.", *map(_has, own, own.values())]),
        )
    except ValidationError as error:  # a value that is out of range, or two fields that do not go together
        raise refusal(error, name) from None
    model = arguments.recipe.model
    if model.name != whole.model.name:
        _check_inherited(model.name, own["options"].keys() - model.options.keys(), name)
    both = {part: {**values, **getattr(model, part)} for part, values in own.items()}
    model = model.model_copy(
        update={
            part: {option: value for option, value in values.items() if value != "None"}
            for part, values in both.items()
        }
    )
    arguments.recipe = arguments.recipe.model_copy(update={"model": model})
    now = arguments.recipe.optimizer.name
    with_rate = any(word.partition("=")[0] == "--optimizer.lr" for word in words)
    if now not in ("sgd", whole.optimizer.name) and not with_rate:
        raise UserError(f"attneck train {name}: {no_rate(now)}")
    return arguments


def _check_inherited(model: str, options: Set[str], recipe: str) -> None:
    """UserError for an option that the recipe gives its own network, and that this one does not have."""
    if (entry := catalog.CATALOG.get(model)) is None:
        return
    own, backbones = own_and_backbones(entry.options)
    if strange := sorted(options - own - backbones):
        words = " ".join(f"--model.options.{option} None" for option in strange)
        raise UserError(
            f"attneck train {recipe}: the recipe gives its network {', '.join(strange)}, which {model} does "
            f"not have: take it back with {words}"
        )


def _has(part: str, values: dict[str, Any]) -> str:
    """What the help says of the recipe's own options, which are no defaults."""
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"Its model.{part}: {said}." if said else ""


def gathered(words: list[str]) -> list[str]:
    """The words with each `--model.options.NAME VALUE …` as part of the one `--model.options`.

    Raises:
        UserError: an option that is given twice.
    """
    kept: list[str] = []
    options: dict[str, list[str]] = {}
    into = kept
    for place, word in enumerate(words):
        dotted = re.fullmatch(r"--model\.((?:surgery[-_])?options)\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        plain = re.fullmatch(r"--model\.((?:surgery[-_])?options)", word)
        if found := dotted or plain:
            flag = f"--model.{found[1].replace('_', '-')}"
            into = options.setdefault(flag, [])
        elif word.startswith("--") or word == "-h":
            into = kept
        option = dotted[2].replace("-", "_") if dotted else ""
        if (plain and word in words[:place]) or (dotted and option in into):
            raise UserError(
                f"{word.partition('=')[0]} is given more than once: give it once, with all of its values"
            )
        if dotted:
            into += [option] if dotted[3] is None else [option, dotted[3]]
        elif not plain:
            into.append(word)
    return kept + [word for flag, values in options.items() for word in (flag, *values)]


def _given(words: list[str], option: str) -> str | None:
    """The value that the words give to an option; None where they don't."""
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word == f"--{option}":
            return value
        if word.startswith(f"--{option}="):
            return word.partition("=")[2]
    return None


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
        raise RunFailed(f"process {rank} of {processes} ended with code {code}", code) from None
