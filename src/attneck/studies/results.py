"""What a study's runs have come to, as far as they have: scores by seed, their curves, and their cost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from attneck.data.fingerprint import changes, shortened
from attneck.errors import UserError, one_line, user_mistakes
from attneck.files import read_json
from attneck.runs.cost import Cost, cost_of
from attneck.runs.provenance import environment_of
from attneck.runs.report.words import images_of
from attneck.runs.run import Run
from attneck.runs.status import timed_steps
from attneck.studies.statistics import Difference, Score, Spread, difference, spread
from attneck.studies.study import Cell, Study, made_of
from attneck.training.best import NOTHING
from attneck.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from attneck.tasks.task import Facts
    from attneck.training.recipe import Recipe

UNKNOWN = "unknown"
"""A machine that a run does not name."""


@dataclass
class Row:
    """A variant on a problem: what its finished runs say."""

    problem: str
    variant: str
    scores: dict[int, Score] = field(default_factory=dict)
    """By seed."""
    curves: dict[int, list[tuple[int, Score]]] = field(default_factory=dict)
    """By seed: the training images seen, and the score then."""
    seconds: dict[str, float] = field(default_factory=dict)
    """An epoch's, by processor or GPU: each run's median, and of the seeds that ran there the least."""
    machines: dict[int, list[str]] = field(default_factory=dict)
    """By seed: the processors or GPUs that it ran on, more than one where it went on on another."""
    cost: Cost | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    """What its weights depend on but the seed, by the fields' dotted names."""
    data: dict[str, str] = field(default_factory=dict)
    """By part, training and held-out: how many images there are, and the digest of their fingerprint."""

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant

    @property
    def spread(self) -> Spread | None:
        """Of the scores; None before the first run has ended."""
        return spread(self.scores) if self.scores else None

    def against(self, baseline: Row) -> Difference | None:
        """Its difference to the baseline's, over the seeds of both; None where it was scored otherwise."""
        if self is baseline or not self.scored_as(baseline):
            return None
        return difference(self.scores, baseline.scores)

    def scored_as(self, baseline: Row) -> bool:
        """Whether both have the same held-out images, as far as is known."""
        here, there = (row.data.get("held-out") for row in (self, baseline))
        return here == there or None in (here, there)

    def apart(self, baseline: Row, seeds: Collection[int]) -> int:
        """How many pairs of these seeds are known to be of two machines, whose arithmetic may differ."""
        both = self.machines.keys() & baseline.machines.keys() & set(seeds)
        pairs = [({*self.machines[seed]}, {*baseline.machines[seed]}) for seed in both]
        return sum(here != there for here, there in pairs if UNKNOWN not in here | there)

    def images_to(self, threshold: float, *, less_is_better: bool = False) -> dict[int, int | None]:
        """By seed: the images seen when the score first reached `threshold`; None where it never did."""
        sign = -1 if less_is_better else 1
        return {
            seed: next((images for images, score in curve if sign * score >= sign * threshold), None)
            for seed, curve in self.curves.items()
        }


def collect(study: Study, cells: Sequence[Cell]) -> list[Row]:
    """A row for each variant on each problem, from whatever runs have ended; others are left out.

    Raises:
        UserError: a folder with a run of another recipe or of other images, or with files that no run writes;
            held-out images with nothing that the study's metric scores.
    """
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells:
        row = rows.setdefault((cell.problem, cell.variant), Row(cell.problem, cell.variant))
        row.recipe = {key: value for key, value in made_of(cell.recipe).items() if key != "seed"}
        if not cell.done:
            continue
        if different := cell.differs():
            raise UserError(
                f"{cell.folder} holds a run of another recipe ({'; '.join(different[:3])}): it is no part of "
                "this study; move it, or give the study's own --out"
            )
        run = Run(cell.folder)
        history = run.history
        if (last := history[-1]["step"]) != (steps := run.summary.get("steps")):
            raise UserError(
                f"{cell.folder}: its last record is of step {last}, and its summary.json of step {steps}: "
                f"attneck train {shlex.quote(str(cell.folder))} --resume writes both anew"
            )
        key = _key(study.metric, history[-1], cell)
        if history[-1][key] == NOTHING:
            raise UserError(
                f"{cell.folder}: of its held-out images none has anything that {study.metric} scores (COCO's "
                "-1): give the study another metric"
            )
        row.scores[cell.seed] = float(history[-1][key])
        row.curves[cell.seed] = [(one["step"] * cell.recipe.batch, float(one[key])) for one in history]
        took = _seconds(cell, history)
        row.machines[cell.seed] = _machines(cell)
        if len(row.machines[cell.seed]) == 1:  # else its seconds are of neither
            (machine,) = row.machines[cell.seed]
            row.seconds[machine] = min(took, row.seconds.get(machine, took))
        facts = _facts(cell)
        row.data = {part: _digest(facts, part) for part in facts["data"]}
        row.cost = row.cost or cost_of(cell.folder, cell.recipe, facts)
    check_data(study, cells)
    return [
        rows[problem, variant]
        for problem in study.problems or [""]
        for variant in study.variants
        if (problem, variant) in rows
    ]


def check_metric(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse a metric that the runs will not have.

    Raises:
        UserError: such a metric, with those that there are.
    """
    from attneck.tasks import task_of

    for cell in cells:
        with user_mistakes():
            known = task_of(cell.recipe).metrics(cell.recipe)
        if study.metric not in known:
            raise UserError(
                f"the study's metric is {study.metric!r}, which {cell.name} will not have: give it one of "
                f"{', '.join(known)}"
            )


def check_data(study: Study, cells: Sequence[Cell], to_train: Sequence[Cell] = ()) -> None:
    """Refuse runs that have ended on other images than others of the study: their scores do not compare.

    Where a run's data.root is not the one that is given, its images are compared with those there.

    Args:
        to_train: runs that follow. Their images are opened, and those of ended runs are compared with what is
            there now, which may have been replaced since.

    Raises:
        UserError: such a run; images that are not there, or too few for a run's warm-up.
    """
    known: dict[str, tuple[Path, Facts]] = {}
    there: dict[str, Facts] = {}
    for cell in (cell for cell in cells if cell.done):
        facts, images = _facts(cell), study.images(cell.problem, cell.variant)
        folder, first = known.setdefault(images, (cell.folder, facts))
        if said := changes(first, facts):
            raise UserError(
                f"{cell.folder} was trained on other data than {folder} ({shortened(said)}), and their "
                "scores do not compare: remove one of them, and it is trained anew"
            )
        given, root = cell.recipe.data.root, load_recipe(str(cell.folder)).data.root
        if given == root and not to_train:
            continue
        was, place = root or "ATTNECK_DATA", given or "ATTNECK_DATA"
        both = f"{cell.folder} was trained on the data in {was}, and that in {place}"
        wanted = f"give --data.root {root}"
        if given == root:
            both, wanted = f"{both} now", "put the images back"
        try:
            there[images] = there.get(images) or _opened(cell.recipe)
        except (OSError, ValueError) as error:
            raise UserError(f"{both} cannot be compared ({one_line(error, 200)}): {wanted}") from None
        if said := changes(facts, there[images]):
            raise UserError(f"{both} is other data ({shortened(said)}): {wanted}, or give another --out")
    for cell in to_train:
        images = study.images(cell.problem, cell.variant)
        with user_mistakes():
            if images not in there:
                there[images] = _opened(cell.recipe)
            if (count := images_of(there[images], "training")) is not None:
                cell.recipe.total_steps(count // cell.recipe.batch)  # refuses a warm-up that is longer


def _facts(cell: Cell) -> Facts:
    """What its run kept of its data; runs of older versions kept no fingerprints."""
    return {"data": {}, **_whole(cell, "data.json")}


def _whole(cell: Cell, name: str) -> dict[str, Any]:
    """A JSON object in its folder; UserError where that is missing or damaged."""
    if (found := read_json(cell.folder / name)) is None:
        raise UserError(
            f"{cell.folder / name} is missing or damaged: attneck train {shlex.quote(str(cell.folder))} "
            "--resume writes it anew"
        )
    return found


def _opened(recipe: Recipe) -> Facts:
    """The same of the data as it is now."""
    import torch

    from attneck.runs.copies import fingerprints_of
    from attneck.tasks import open_task
    from attneck.training.distributed import World

    task = open_task(recipe, World(0, 1, torch.device("cpu")))
    return task.describe() | {"data": fingerprints_of(task)}


def _digest(facts: Facts, part: str) -> str:
    rows = facts["data"][part]
    digest = blake2b(json.dumps([facts["classes"], rows]).encode(), digest_size=8).hexdigest()
    return f"{sum(row[0] for row in rows.values()):,} images, {digest}"


def _key(metric: str, record: dict[str, Any], cell: Cell) -> str:
    """Of the metric in a record: the averaged weights' where they are kept."""
    for key in (f"ema_{metric}", f"val_{metric}"):
        if key in record:
            return key
    known = sorted(name.removeprefix("val_") for name in record if name.startswith("val_"))
    raise UserError(f"{cell.folder} has no score {metric!r}: give the study a metric of {', '.join(known)}")


def _machines(cell: Cell) -> list[str]:
    """The processor or GPU that it ran on, or several."""
    environment = _whole(cell, "environment.json")
    starts = environment.get("starts") or [environment]
    return sorted({start.get("gpu") or start.get("processor") or UNKNOWN for start in starts})


def _seconds(cell: Cell, history: list[dict[str, Any]]) -> float:
    """Of an epoch, training and scoring: the median of its records, whose seconds begin anew at a resume."""
    steps = timed_steps(history, environment_of(cell.folder).get("starts") or [])
    an_epoch = history[-1]["step"] / max(0.001, history[-1]["epoch"])  # steps
    return median(one["seconds"] * an_epoch / took for one, took in zip(history, steps, strict=True) if took)


def baseline_of(study: Study, rows: Sequence[Row], problem: str) -> Row:
    """The row that the others of this problem are compared with."""
    return next(row for row in rows if (row.problem, row.variant) == (problem, study.baseline))
