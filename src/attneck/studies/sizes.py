"""A study's runs on images of other sizes than they were trained on: their scores, a table and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attneck.errors import EXPECTED, ending, user_mistakes
from attneck.files import number
from attneck.runs.run import Run
from attneck.studies import kept
from attneck.studies.statistics import Score, decimals_of, told
from attneck.studies.study import RECALIBRATE, Cell, Fields, Study
from attneck.training.best import NOTHING

FILE = "sizes.json"
"""Beside a run's summary: scores by how the network was made, and by the side in pixels."""
AS_TRAINED = "as trained"
RANKING = "auc"
"""Of two answers, the area under the ROC curve: another size may move all logits to one side, and leave
them in their order."""
Said = Callable[[str], None]


@dataclass
class SizeRow:
    """A way to score a variant's runs on a problem: by side in pixels and seed, a metric."""

    problem: str
    name: str
    metric: str
    scores: dict[int, dict[int, Score]] = field(default_factory=dict)

    @property
    def curves(self) -> dict[int, list[tuple[int, float]]]:
        """By seed: side and score."""
        seeds = sorted({seed for scores in self.scores.values() for seed in scores})
        return {
            seed: [
                (size, self.scores[size][seed]) for size in sorted(self.scores) if seed in self.scores[size]
            ]
            for seed in seeds
        }


def check(study: Study, to_train: Sequence[Cell]) -> None:
    """Refuse sizes and ways that these runs could not be scored in, before they are trained.

    Raises:
        UserError: a side that their images cannot have; more images to recalibrate by than there are, or of
            a detector.
    """
    import torch

    from attneck.data.classification import ClassificationDataset
    from attneck.tasks import open_task
    from attneck.training.distributed import World

    opened: dict[str, Any] = {}
    for cell in to_train if study.sizes else ():
        images = study.images(cell.problem, cell.variant)
        with user_mistakes():
            if images not in opened:
                opened[images] = open_task(cell.recipe, World(0, 1, torch.device("cpu")))
                if isinstance(opened[images].held_out, ClassificationDataset):
                    for side in study.sizes:
                        opened[images].held_out.at(side)
            for way, fields in ways_of(study, cell.variant).items():
                wanted: Any = fields.get(RECALIBRATE)
                if wanted is None:
                    continue
                if opened[images].finds_objects:
                    raise ValueError(f"rescored {way}: {RECALIBRATE} is of classifiers: leave it out")
                if wanted > (count := len(opened[images].training)):
                    raise ValueError(
                        f"rescored {way}: {RECALIBRATE} is {wanted}, and {cell.name} has {count:,} training "
                        "images: give fewer"
                    )


def find(study: Study, cells: Sequence[Cell], said: Said) -> None:
    """Score every finished run at every size, in every way, that isn't scored yet; a line each to `said`.

    So too for what cannot be scored: the report is of the others.
    """
    for cell in cells:
        for name, fields, size in lacking(study, cell):
            try:
                kept.keep(cell.folder / FILE, f"{_key(fields)}, {size}", _scores(cell, size, fields))
            except EXPECTED as error:
                said(f"{cell.name}: not scored as {name} at {size} pixels: {ending(error)[1]}")
                continue
            said(f"{cell.name}: scored as {name} at {size} pixels")


def lacking(study: Study, cell: Cell) -> list[tuple[str, Fields, int]]:
    """The ways and sizes that a finished run is still to be scored in."""
    if not study.sizes or not cell.done or not kept.has_weights(cell.folder):
        return []
    known = kept.read(cell.folder / FILE)
    return [
        (name, fields, size)
        for name, fields in ways_of(study, cell.variant).items()
        for size in study.sizes
        if f"{_key(fields)}, {size}" not in known
    ]


def collect(study: Study, cells: Sequence[Cell]) -> list[SizeRow]:
    """A row for each way on each problem by the study's metric, then by RANKING, of whatever was scored."""
    rows: dict[tuple[str, str, str], SizeRow] = {}
    for metric in (study.metric, RANKING):
        for cell in cells:
            found = kept.read(cell.folder / FILE) if cell.done else {}
            for name, fields in ways_of(study, cell.variant).items():
                key = (cell.problem, name, metric)
                row = rows.setdefault(key, SizeRow(*key))
                for size in study.sizes:
                    scores = found.get(f"{_key(fields)}, {size}", {})
                    if scores.get(metric, NOTHING) != NOTHING:
                        row.scores.setdefault(size, {})[cell.seed] = float(number(scores[metric]))
    return [row for row in rows.values() if row.scores]


def table(study: Study, rows: Sequence[SizeRow]) -> tuple[list[str], list[list[str]]]:
    """The head, and a row of words for each: the mean at each size, with its standard deviation and n."""
    head = ["problem", "score", "scored as", *(f"{size} pixels" for size in study.sizes)]
    body = [
        [
            row.problem,
            row.metric,
            row.name,
            *(told(row.scores.get(size, {}), decimals_of(row.metric)) for size in study.sizes),
        ]
        for row in rows
    ]
    if not study.problems:
        head, body = head[1:], [line[1:] for line in body]
    return head, body


def unscored(study: Study, ended: Iterable[tuple[str, str]], rows: Sequence[SizeRow]) -> list[str]:
    """A line where runs of these problems and variants have ended, and none was scored in one of its ways."""
    known = {(row.problem, row.name): row for row in rows if row.metric == study.metric}
    lacking = []
    for problem, variant in ended:
        for way in ways_of(study, variant):
            scores = known[problem, way].scores if (problem, way) in known else {}
            if missing := [str(size) for size in study.sizes if size not in scores]:
                name = "/".join(filter(None, (problem, way)))
                lacking.append(f"{name} at {', '.join(missing)} pixels")
    return [f"Not scored: {'; '.join(lacking)}."] if lacking else []


def ways_of(study: Study, variant: str) -> dict[str, Fields]:
    """By name, how the variant's runs are scored: as they were trained, and with these fields."""
    others = {
        name: {field: value for field, value in own.items() if field != "variant"}
        for name, own in study.rescored.items()
        if own["variant"] == variant
    }
    return {variant: {}, **others}


def _key(fields: Fields) -> str:
    """What the scores of a way are kept under: names may change, and studies may share runs."""
    return ", ".join(f"{name}={value}" for name, value in sorted(fields.items())) or AS_TRAINED


def _scores(cell: Cell, size: int, fields: Fields) -> dict[str, float]:
    """Of the averaged weights where they are kept."""
    root = cell.recipe.data.root  # where the study's data lies now
    part = cell.rescored(fields).model if fields.keys() - {RECALIBRATE} else None
    images: Any = fields.get(RECALIBRATE)
    found = Run(cell.folder).evaluate(root=root, image_size=size, part=part, recalibrate=images)
    return [*found.values()][-1].scores
