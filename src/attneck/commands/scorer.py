"""What attneck eval asks of a model: a run's, or a saved one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attneck.commands.finder import called
from attneck.commands.given_model import Kind, load
from attneck.errors import say, user_mistakes

if TYPE_CHECKING:
    from attneck.runs.run import Run
    from attneck.tasks.task import Evaluation
    from attneck.training.report import Watch


@dataclass(frozen=True)
class Scorer:
    """A model that can be scored.

    Attributes:
        path: the run's folder, or where the saved model lies.
        model: what it is called.
        step: of a run's checkpoint; None of a saved model.
        images: which ones, in words.
        image_size: their side in pixels.
        own: whether what is found on them belongs to the run, since they are its own.
        evaluate: as `attneck.runs.run.Run.evaluate`.
        tables: as `attneck.runs.run.Run.tables`.
    """

    path: Path
    model: str
    step: int | None
    images: str
    image_size: int
    own: bool
    evaluate: Callable[[Watch], dict[str, Evaluation]]
    tables: Callable[[dict[str, Evaluation]], str]


def of_run(
    run: Run,
    root: str | None,
    val_share: float | None,
    image_size: int | None,
    recalibrate: int | None,
) -> Scorer:
    """UserError for a run without a checkpoint that is whole."""
    from attneck.runs.scored_on import OTHER, scored_on

    recipe, facts = run.recipe, run.facts
    elsewhere = None if root is None else run.data(root=root, val_share=val_share).fingerprint()
    images = scored_on(recipe, facts, elsewhere)
    if images == OTHER and recipe.data.val_share is not None and val_share is None:
        say(
            f"of {root} the share of {recipe.data.val_share:g} is scored that the run's recipe "
            "holds out: --data.val-share 1 scores all",
            once=True,
        )

    def evaluate(watch: Watch) -> dict[str, Evaluation]:
        return run.evaluate(
            root=root, val_share=val_share, image_size=image_size, recalibrate=recalibrate, watch=watch
        )

    size = image_size or facts["image_size"]
    return Scorer(
        run.folder, recipe.model.name, run.step, images, size, images != OTHER, evaluate, run.tables
    )


def of_saved(
    path: Path,
    kind: Kind,
    data: str | None,
    split: str | None,
    root: str | None,
    val_share: float | None,
    image_size: int | None,
) -> Scorer:
    """UserError for damaged files, and for a model that does not say which images it takes."""
    from attneck.models.origin import is_detector
    from attneck.tasks.classification import Classification
    from attneck.tasks.described import facts_of
    from attneck.tasks.detection import Detection
    from attneck.tasks.evaluate import evaluate

    with user_mistakes():
        _, network, _ = load(kind, str(path), image_size, False, "newest")
        facts = facts_of(network)
    detects = is_detector(network)
    name, part = data or ("" if detects else "folder"), split or "val"
    side = facts["image_size"] if image_size is None or detects else image_size

    def score(watch: Watch) -> dict[str, Evaluation]:
        """On CUDA where there is one, in float32, with channels last as a recipe has it by default."""
        import torch

        from attneck.training.allocator import keep_memory
        from attneck.training.distributed import world
        from attneck.training.memory import memory_errors

        with (
            world() as everyone,
            memory_errors(lambda: str(path), "take a machine with more"),
            user_mistakes(),
        ):
            keep_memory(everyone.device.type)
            network.to(everyone.device).to(memory_format=torch.channels_last)
            found = evaluate(
                network,
                name or None,
                root=root,
                split=part,
                image_size=None if detects else image_size,
                val_share=val_share,
                watch=watch,
            )
        return {"val": found}

    tables = (Detection if detects else Classification).tables
    return Scorer(
        path,
        called(path),
        None,
        f"images of {name} {part}",
        side,
        False,
        score,
        lambda found: tables({"weights": found["val"]}),
    )
