"""A recipe becomes a run: data, model and task are put together, and the loop trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from attneck.attention.choice import in_same_bits, set_attention
from attneck.attention.cpu.choice import emulated, set_float32_products
from attneck.attention.cpu.passes import set_passes
from attneck.data import loader
from attneck.data.sampling import TrainBatches
from attneck.data.skipping import summary_of
from attneck.errors import UserError, say, user_mistakes
from attneck.files import write_json
from attneck.layers import BAM, MHSA2d
from attneck.layers.meta import check_logits
from attneck.runs import pictures, snapshots
from attneck.runs.attention_backends import attention_backends, compiles_passes
from attneck.runs.copies import check_copies, fingerprints_of
from attneck.runs.first_weights import check_frozen, frozen, start_from
from attneck.runs.split import write_split
from attneck.runs.start import SKIPPED, Start, Wish, start
from attneck.tasks import open_task
from attneck.tasks.task import Facts, Task
from attneck.training import checkpoint, layers, loop, trackers
from attneck.training.best import Best, best_of, key_of
from attneck.training.compiled import check_compiler
from attneck.training.distributed import World, world
from attneck.training.environment import operators_in_same_bits
from attneck.training.optimizer import parameter_groups
from attneck.training.recipe import TIMM, Recipe
from attneck.training.recipe_file import changed, is_run, load_recipe
from attneck.training.scoring import scored

FEW = 4
"""Rows and columns of a map that attention has something to choose from, at least."""
MANY = 1000
"""Epochs of a run at most; steps that are more were meant for a larger data set."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int  # of the optimiser
    scores: dict[str, Any]  # its last record: top-1 and AP in per cent
    weights: str  # digest of the state dict
    best: Best | None  # of its records, by the recipe's metric
    early: bool  # ended by the recipe's patience


def train(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
    name: str | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    verbose: bool = False,
) -> Summary:
    """Train what `recipe` says, into a run folder that no other program trains in meanwhile.

    Under torchrun every process calls this; the first one writes. After a restart by torchrun the run goes on
    by itself.

    Args:
        recipe: a `Recipe`, or, as `attneck train` takes it, a shipped recipe's name, a YAML file or a run's
            folder.
        out: the folder; where None, the run's whose folder `recipe` is, else a new one, runs/NAME or
            runs/NAME-2 and so on.
        fields: fields of the recipe that are otherwise here, by their dotted names, as a study has them:
            {"epochs": 1, "model.options.bam": "blocks"}. An option of None is taken back.
        name: the NAME of a new folder; where None, the recipe's name, and of a `Recipe` the model's.
        resume: go on with the run that is there.
        accept_changes: on resume, take data that is not what the run was started on; its difference is said,
            and the data as it is now is kept from then on.
        verbose: say of every tensor of `model.weights` or `model.pretrained` what became of it.

    Returns:
        The run's folder, and how it ended. `attneck.load(summary.folder)` is its network.

    Raises:
        UserError: a recipe, model, option or data set that is not there or does not fit; data that is not
            the same on every machine; a folder that another program trains in, that holds a run already, or
            none to resume; a recipe or data other than the run was started with.
        RunFailed: see `attneck.training.loop.train_loop`.
    """
    recipe, wish = _asked(recipe, out, fields or {}, name, resume, accept_changes)
    with world() as everyone, ExitStack() as held:
        check_compiler(recipe, everyone.device)
        with user_mistakes():
            made = _make(recipe, everyone, resume, verbose)
        task, model = made.task, made.model
        # A run that was interrupted ends with the same weights.
        held.enter_context(in_same_bits())
        held.enter_context(operators_in_same_bits())
        backends = partial(attention_backends, model, recipe, everyone.device)
        passes = compiles_passes(model, everyone.device)

        def begins(recipe: Recipe) -> Start:
            with user_mistakes():
                known = made.facts | {"data": made.fingerprints()}
            return start(task, recipe, known, wish, everyone, held, backends, passes)

        begun = _start_once(everyone, partial(begins, recipe))
        folder, recipe = begun.folder, begun.recipe
        if everyone.rank == 0:
            write_split(folder, task)
        if task.training.skipped is not None:
            task.training.skipped.keep(folder / SKIPPED)
        _compute_as(begun)
        if everyone.rank == 0:
            _say_first(recipe, made, begun, everyone)

        seen = snapshots.Snapshots(folder, task, begun.facts) if recipe.pictures else None
        undrawn = everyone.rank == 0 and recipe.pictures and begun.resume and pictures.lacking(folder)
        progress, average = loop.train_loop(
            model,
            task,
            lambda step: iter(batches_from(step, task, recipe, everyone)),
            recipe,
            folder,
            everyone,
            steps_per_epoch=len(task.training) // recipe.batch,
            resume=begun.resume,
            facts=begun.facts,
            decides=made.decides,
            look=seen,
            score_again=bool(everyone.maximum([float(undrawn)])[0]),
        )
        _say_skipped(task, everyone)
        last = average.module if average is not None else model
        if everyone.rank == 0 and seen is not None and seen.last(progress.step):
            scored(partial(seen.take, progress.step), last, recipe, everyone.device)
        summary = Summary(
            folder,
            progress.step,
            progress.history[-1],
            checkpoint.digest(last.state_dict()),
            best_of(progress.history, made.decides),
            progress.step < recipe.total_steps(len(task.training) // recipe.batch),
        )
        if everyone.rank == 0:
            _write_end(summary)
            if recipe.pictures:
                pictures.draw_pictures(folder, task, begun.facts)
        return summary


def _asked(
    recipe: Recipe | str | Path,
    out: str | Path | None,
    fields: Mapping[str, Any],
    name: str | None,
    resume: bool,
    accept_changes: bool,
) -> tuple[Recipe, Wish]:
    """The recipe that was given or named, and where and how its run is to go."""
    if not isinstance(recipe, Recipe):
        word = Path(recipe)
        if out is None and name is None and is_run(word):
            out = word
        name, recipe = name or word.stem, load_recipe(str(recipe))
    if fields:
        recipe = changed(recipe, fields, name or recipe.model.name)
    trackers.require(recipe)
    if accept_changes and not resume:
        raise UserError("--accept-changes goes with --resume: a new run takes the data as it is")
    return recipe, Wish(None if out is None else Path(out), name or recipe.model.name, resume, accept_changes)


@dataclass(frozen=True)
class _Made:
    """What a recipe makes before there is a folder."""

    task: Task
    model: nn.Module
    facts: Facts
    decides: str  # the score that the best checkpoint is kept by
    fingerprints: Callable[[], dict[str, Any]]  # of the data; read once, when they are first asked for
    started: list[str]  # what is to be said of the weights that the model starts from


def _make(recipe: Recipe, everyone: World, resume: bool, verbose: bool) -> _Made:
    """The task with its data, and the model with the weights that it starts from.

    Raises ValueError or FileNotFoundError for whatever does not fit, before anything is written.
    """
    task = open_task(recipe, everyone)
    fingerprints = cache(partial(fingerprints_of, task))
    check_copies(everyone, [*task.training.classes], fingerprints)
    if task.training.classes != task.held_out.classes:
        raise UserError(
            f"the {len(task.training.classes)} classes of the training images are not the "
            f"{len(task.held_out.classes)} of those held out: train and score on the same classes"
        )
    batches_from(0, task, recipe, everyone)  # refuses a batch that does not divide
    decides = key_of(recipe, task.metrics(recipe))
    facts = task.describe()
    torch.manual_seed(recipe.seed)
    model = task.build(recipe, facts)
    others = [facts["image_size"]] if recipe.model.name.startswith(TIMM) else []  # nothing else is known
    for side in {*others, *(recipe.data.image_sizes or ())}:
        check_logits(model, side, len(facts["classes"]))
    if not task.finds_objects:
        _check_share(model, recipe, everyone)
    parameter_groups(model, recipe.optimizer)  # refuses layer_decay where there is no order of layers
    drawn = frozen(model, recipe)
    started: list[str] = []
    if not resume:
        started = start_from(recipe.model, task, model, verbose)
        check_frozen(model, drawn)
        if (check := getattr(model, "check_statistics", None)) is not None:  # a detector's
            check()
    return _Made(task, model, facts, decides, fingerprints, started)


def _compute_as(begun: Start) -> None:
    """By the library of products, the passes and the attention that the run began with."""
    with user_mistakes():
        set_float32_products(begun.products)
        if begun.passes is not None:
            set_passes(begun.passes)
        set_attention(begun.attention)


def _say_first(recipe: Recipe, made: _Made, begun: Start, everyone: World) -> None:
    """What whoever starts it should know: of the device, and of a new run its surgery, weights and length."""
    on_cpu = everyone.device.type == "cpu"
    if on_cpu and (torch.backends.mps.is_available() or torch.xpu.is_available()):
        say("trains on the CPU: of GPUs it takes NVIDIA's alone")
    if recipe.precision == "bfloat16" and on_cpu and emulated(torch.bfloat16):
        say("this processor has no products in bfloat16: float32 ones, rounded, take its place")
    if not begun.resume:
        many = many_epochs(recipe, len(made.task.training))
        few = few_positions(made.model, made.facts["image_size"])
        for said in (*getattr(made.model, "surgery_reports", ()), few, *made.started, many):
            if said is not None:
                say(said)


def _say_skipped(task: Task, everyone: World) -> None:
    """A line for the training images that no process could read; called on all of them."""
    if task.training.skipped is not None:
        left_out = set(everyone.joined(task.training.skipped.files()))
        if left_out and everyone.rank == 0:
            say(summary_of(left_out))


def _write_end(summary: Summary) -> None:
    """summary.json, by which a run is known to have come to its end."""
    document = {"steps": summary.steps, **summary.scores, "weights": summary.weights}
    if summary.best is not None:
        document["best"] = asdict(summary.best)
    if summary.early:
        document["ended_early"] = True
    write_json(summary.folder / "summary.json", document)


def many_epochs(recipe: Recipe, images: int) -> str | None:
    """What is to be said of steps that are more than MANY epochs of so many training images; else None."""
    if recipe.steps is None or images < recipe.batch:
        return None
    steps = recipe.total_steps(images // recipe.batch)
    epochs = steps * recipe.batch / images
    if epochs <= MANY:
        return None
    return (
        f"{steps:,} steps of {recipe.batch} are {epochs:,.0f} epochs of the {images:,} training images: "
        "give --epochs for a schedule by the data (its warm-up and milestones keep their share)"
    )


def few_positions(model: nn.Module, image_size: int) -> str | None:
    """What is to be said of attention on maps of fewer than FEW rows or columns; else None."""
    maps = {name: layer.map_size for name, layer in model.named_modules() if isinstance(layer, MHSA2d)}
    few = [f"{name} on {H}×{W}" for name, (H, W) in maps.items() if min(H, W) < FEW]
    if not few:
        return None
    where = ", ".join(few[:3]) + ", …" * (len(few) > 3)
    return (
        f"on images of {image_size} pixels attention has few positions to choose from ({where}): "
        "give larger images, such as --data.image-size 224"
    )


def batches_from(step: int, task: Task, recipe: Recipe, everyone: World) -> DataLoader[Any]:
    """This process's batches from optimiser step `step` to the recipe's last."""
    length = len(task.training)
    batches = TrainBatches(
        length,
        recipe.batch,
        seed=recipe.seed,
        rank=everyone.rank,
        world=everyone.size,
        accumulate=recipe.accumulate,
        start=step,
        steps=recipe.total_steps(length // recipe.batch),
        sides=recipe.data.image_sizes or (),
    )
    return loader(task.training, batches, recipe.data.workers, task.collate)


def _check_share(model: nn.Module, recipe: Recipe, everyone: World) -> None:
    """ValueError where BAM's channel branch, whose norm sees means of maps, would learn from one image."""
    share = recipe.batch // (recipe.accumulate * everyone.size)
    if share > 1 or (recipe.sync_bn and everyone.size > 1):
        return
    stages = recipe.optimizer.freeze
    frozen = set() if stages is None else layers.frozen_by(model, stages)
    learn = {name for name, _ in model.named_parameters()} - frozen
    bams = [name for name, layer in model.named_modules() if isinstance(layer, BAM) and layer.channel_att]
    if any(name.startswith(f"{bam}.channel_att.") for bam in bams for name in learn):
        raise ValueError(
            f"{recipe.model.name}: one image at a time gives BAM's BatchNorm one value a channel, which has "
            "no variance: give a greater batch, or a smaller accumulate"
        )


def _start_once(everyone: World, begin: Callable[[], Start]) -> Start:
    """What `begin` gives the first process, or its refusal, on every process."""
    box: list[Start | UserError | None] = [None]
    if everyone.rank == 0:
        try:
            box[0] = begin()
        except UserError as error:
            box[0] = error
    if everyone.size > 1:
        # By gloo, which waits for longer, but in a program's own group of GPUs alone.
        dist.broadcast_object_list(box, src=0, device=everyone.device_to_talk_on())
    if isinstance(box[0], UserError):
        raise box[0]
    assert box[0] is not None
    return box[0]
