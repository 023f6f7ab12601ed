"""How a run starts: its folder is taken, and compared with what is there; then it is described."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attneck.attention.choice import attention, set_attention
from attneck.attention.cpu.choice import float32_products
from attneck.attention.cpu.passes import passes
from attneck.data.fingerprint import changes, renames, shortened
from attneck.errors import UserError, say, user_mistakes
from attneck.files import write_atomic, write_json
from attneck.runs.cost import COST
from attneck.runs.folder import PICTURES, newest_folder, present, take_folder, writing
from attneck.runs.lock import only_one
from attneck.runs.provenance import environment_of
from attneck.runs.report import REPORT
from attneck.runs.scored import SCORED
from attneck.runs.snapshots import FOLDER as SNAPSHOTS
from attneck.runs.split import SPLIT
from attneck.tasks.task import Facts, Task
from attneck.training import checkpoint
from attneck.training.checkpoint_files import checkpoints, named, sum_of
from attneck.training.distributed import World
from attneck.training.environment import environment
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import RECIPE, differences, dump_recipe, parse_recipe
from attneck.training.records import RECORDS, TABLE

ENVIRONMENT = "environment.json"
DATA = "data.json"
SKIPPED = "skipped.jsonl"
WRITTEN = (ENVIRONMENT, RECIPE, DATA, TABLE, SPLIT, COST, SCORED, SKIPPED, REPORT, PICTURES)
"""What a run writes into its folder, beside its checkpoints, its records and its summary."""
LEFT = re.compile(
    r"(\.(recipe\.yaml|(environment|data|summary|scored|trackers)\.json|metrics\.(jsonl|csv)|split\.csv)"
    rf"|{PICTURES}/\.[\w-]+\.png|{SNAPSHOTS}/\.step-[0-9]+\.json)\.[0-9]+\.tmp"
)
"""What a process that was killed in a write has left: only who holds the folder writes these files."""


@dataclass(frozen=True)
class Wish:
    """What was asked for: the folder, or the name of a new one, and how it may go on."""

    out: Path | None
    name: str
    resume: bool
    accept_changes: bool


@dataclass(frozen=True)
class Start:
    """Where a run lies, what it knows of its data, what computes its numbers, and whether it goes on.

    Its recipe is the one that it was given, which on resume says what the run has begun from.
    """

    folder: Path
    recipe: Recipe
    facts: Facts
    products: str
    passes: str | None
    attention: str
    resume: bool


def start(
    task: Task,
    recipe: Recipe,
    facts: Facts,
    wish: Wish,
    everyone: World,
    held: ExitStack,
    backends: Callable[[], str],
    has_passes: bool,
) -> Start:
    """Take the run's folder until `held` ends, and write what the run is made from.

    On resume the run there is compared with this one, and its library of products, its compiled passes and
    what was asked of its attention are kept: others round otherwise. `backends` says by which its maps are
    computed, `has_passes` whether passes over its maps may be compiled ones. A worker that torchrun starts
    anew finds the folder that it took, and goes on by itself.

    Args:
        facts: what the task describes, and "data": the fingerprints of its images.

    Raises:
        UserError: a folder that cannot be made or is taken, that holds a run already, none to resume or files
            of somebody else's in their places, or whose run was started otherwise.
    """
    launch = _launch()
    folder = _taken(wish, launch, held)
    before = environment_of(folder)
    goes_on = bool(checkpoints(folder / "checkpoints"))
    starts: list[dict[str, Any]] = before.get("starts", [])
    restarted = bool(starts) and _same(starts[-1].get("launch"), launch)
    if goes_on and not (wish.resume or restarted):
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    if not goes_on:
        _check_free(folder, begun=bool(starts))
    with user_mistakes():  # by environment variables
        products: str = float32_products()
        asked: str = attention()
    step = 0
    changed: list[str] = []
    if goes_on:
        step, changed, recipe = _compared(folder, task, recipe, facts, accept=wish.accept_changes)
        _say_other_rounding(folder, before, recipe, everyone)
        products = before.get("float32_products", products)
        asked = before.get("attention", asked)
    if restarted:
        whence = f"going on from step {step}" if goes_on else "from the beginning"
        say(f"{folder}: started again by torchrun, {whence}")
    with user_mistakes():
        set_attention(asked)
        taken = backends()
        made: str | None = None
        if has_passes:
            # Before they were recorded, of this network too, there were PyTorch's operators alone.
            made = before.get("attention_passes") or "operators" if goes_on and before else passes()
    if goes_on and (earlier := before.get("attention_backends", taken)) != taken:
        say(
            f"{folder} goes on with other backends of attention ({taken or 'none'}; before: "
            f"{earlier or 'none'}): rounding differs, and so will the last bits of its weights"
        )
    now = environment() | {
        "float32_products": products,
        "attention_passes": made,
        "attention": asked,
        "attention_backends": taken,
    }
    at = datetime.now(UTC).isoformat(timespec="seconds")
    this = now | {"at": at, "step": step, "data_changes": changed, "launch": launch}
    around = now | {"starts": [*(starts if goes_on else []), this]}
    with writing(folder):
        if not goes_on:
            for name in (SKIPPED, COST, SCORED):  # of another start, perhaps of another network
                (folder / name).unlink(missing_ok=True)
        for name, content in ((ENVIRONMENT, around), (DATA, facts)):  # the first says whose the others are
            write_json(folder / name, content)
        write_atomic(folder / RECIPE, dump_recipe(recipe).encode())
    return Start(folder, recipe, facts, products, made, asked, goes_on)


def _check_free(folder: Path, *, begun: bool) -> None:
    """UserError where a new run would write over another one's files, or somebody else's.

    begun: whether a run has started there before, and left no checkpoint.
    """
    if bare := named(folder / "checkpoints"):  # sums come first: a copy left it out
        raise UserError(
            f"{bare[0]} has no {sum_of(bare[0]).name} beside it, which came with it: copy that file too, or "
            "choose another --out"
        )
    # Both are there after the first checkpoint, and not before.
    records = [folder / name for name in ("summary.json", RECORDS)]
    if kept := [file for file in records if file.is_file() and file.stat().st_size]:
        raise UserError(
            f"{kept[0]} is of a run whose checkpoints are gone: choose another --out, or move the folder away"
        )
    if not begun and (foreign := [file for file in map(folder.joinpath, WRITTEN) if file.exists()]):
        raise UserError(
            f"{foreign[0]} is there, and no run has written it: choose another --out, or move it away"
        )


def _say_other_rounding(folder: Path, before: dict[str, Any], recipe: Recipe, everyone: World) -> None:
    """A line where a run that goes on rounds otherwise than its environment `before` did."""
    if not before:
        say(
            f"{folder / ENVIRONMENT} is missing or damaged: the library of products and attention's "
            "backends are chosen anew; where they are others, the last bits of its weights will "
            "differ"
        )
    here = torch.get_num_threads()
    threads = before.get("torch_threads", here)
    if (processes := before.get("processes", everyone.size)) != everyone.size:
        say(
            f"{folder} goes on with another number of processes, {everyone.size} for {processes}: each "
            f"step has the same {recipe.batch} images, {recipe.batch // everyone.size} a process; rounding "
            "differs, and so will the last bits of its weights"
        )
    elif everyone.device.type == "cpu" and threads != here:
        say(
            f"{folder} goes on with another number of threads, {here} for {threads}: rounding differs, and "
            f"so will the last bits of its weights; OMP_NUM_THREADS={threads} keeps them"
        )


def _taken(wish: Wish, launch: list[str] | None, held: ExitStack) -> Path:
    """The run's folder, made where it is to be a new one, and locked."""
    folder = wish.out if wish.out is not None else _begun_by(launch, wish.name)
    if folder is None and wish.resume:
        folder = newest_folder(wish.name)
    with writing(folder or Path("runs")):
        if folder is None:
            folder = take_folder(wish.name)
        elif not wish.resume:
            folder.mkdir(parents=True, exist_ok=True)
        elif not checkpoints(folder / "checkpoints"):
            checkpoint.load_latest(folder / "checkpoints")  # says so, and nothing is made
        held.enter_context(only_one(folder))
        for file in [*folder.iterdir(), *folder.glob(f"{PICTURES}/.*"), *folder.glob(f"{SNAPSHOTS}/.*")]:
            if LEFT.fullmatch(file.relative_to(folder).as_posix()):
                with suppress(OSError):  # it is in nobody's way
                    file.unlink()
    return folder


def _compared(
    folder: Path, task: Task, recipe: Recipe, facts: Facts, *, accept: bool
) -> tuple[int, list[str], Recipe]:
    """The step that the run there has come to, how its data has changed if that is accepted, and a recipe.

    That is `recipe` with the weights which the run there has begun from: they are in its checkpoint by now.
    """
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    step, old = int(state["step"]), state["facts"]
    before = parse_recipe(state["recipe"], str(folder))
    usual = task.metrics(recipe)[0]  # where no metric is named
    was, wanted = (one.model_copy(update={"metric": one.metric or usual}) for one in (before, recipe))
    if other := differences(was, wanted):
        raise UserError(f"{folder} was started otherwise ({shortened(other)}): drop the change or --resume")
    began = before.model.weights
    if recipe.model.weights not in (None, began):
        raise UserError(
            f"{folder} was started from {began or 'no weights'}, not from {recipe.model.weights}: leave "
            "model.weights out, as it goes on from its checkpoint; or start a new run"
        )
    model = recipe.model.model_copy(update={"weights": began})
    changed = changes(old, facts)
    if not changed and old.get("category_ids") != facts.get("category_ids"):
        changed = ["its classes have other ids"]
    said, back = shortened(changed), "give it the data that it was started on"
    _check_labels(folder, old, facts, said, back)
    compared = facts.keys() - {"classes", "category_ids", "data"}
    if other := sorted(name for name in compared if old.get(name) != facts[name]):
        raise UserError(
            f"{folder} was started on other data (its {', '.join(other)} differ): {back}, or start a new run"
        )
    if changed and not accept:
        raise UserError(
            f"{folder} was started on other data ({said}): {back}, or take it as it is now with "
            "--accept-changes"
        )
    if step > (steps := recipe.total_steps(len(task.training) // recipe.batch)):
        raise UserError(
            f"{folder} has done {step} steps, and with the data as it is now ({said}) it would have {steps}: "
            f"{back}, or start a new run"
        )
    if changed:
        say(f"{folder} goes on with other data: {said}")
    return step, changed, recipe.model_copy(update={"model": model})


def _check_labels(folder: Path, old: Facts, facts: Facts, said: str, back: str) -> None:
    """UserError where the data's labels are not those that the run was started on.

    Args:
        said: how the data has changed, in words.
        back: what to do about it.
    """
    if len(old["classes"]) != len(facts["classes"]):
        raise UserError(
            f"{folder} was started on {len(old['classes'])} classes, the data has {len(facts['classes'])} "
            f"({said}): its model does not fit; {back}, or start a new run"
        )
    known = renames(old, facts)
    for label, (was, name) in enumerate(zip(old["classes"], facts["classes"], strict=True)):
        if was != (came := known.get(name, name)) and came in old["classes"]:
            raise UserError(
                f"{folder} was started with {was!r:.42} as class {label}, the data as it is now has "
                f"{name!r:.42} there ({said}): its labels would be others; {back}, or start a new run"
            )


def _launch() -> list[str] | None:
    """The torchrun that started this process, the same after a restart: its run id, and its folder of errors.

    None without torchrun. The folder has a random name, so another torchrun has another one.
    """
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))  # FOLDER/attempt_0/0/error.json
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return [os.environ["TORCHELASTIC_RUN_ID"], file.parents[2].name if len(file.parents) > 2 else ""]


def _same(before: Any, now: list[str] | None) -> bool:
    """True where `now` starts again what `before` started.

    On many machines the first process may come to another one: its folder differs, a run id of one's own does
    not. torchrun's default id is "none".
    """
    if now is None or not isinstance(before, list) or len(before) != 2:
        return False
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return (before == now and now[1] != "") or (again and before[0] == now[0] != "none")


def _begun_by(launch: list[str] | None, name: str) -> Path | None:
    """The folder that this torchrun took for `name` before a restart."""
    for folder in reversed(present(name) if launch else []):
        if (starts := environment_of(folder).get("starts")) and _same(starts[-1].get("launch"), launch):
            return folder
    return None
