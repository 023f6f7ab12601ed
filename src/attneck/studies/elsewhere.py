"""A study's runs on other machines: what a report from there says, put together with the runs here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from attneck.errors import UserError, brief
from attneck.runs.cost import Cost
from attneck.studies.distance import DistanceRow
from attneck.studies.report import Results
from attneck.studies.results import Row
from attneck.studies.sizes import RANKING, SizeRow, ways_of
from attneck.studies.study import BEGIN_AND_END, Study
from attneck.training.recipe_file import unlike

T = TypeVar("T")
Run = tuple[str, str, int]
"""Problem, variant and seed."""


def add(results: Results, file: Path) -> Results:
    """`results` with the runs of a report.json that it lacks. Of a run that both have, the one here counts.

    A report of another study gives the runs that both studies have by their recipes, as those have whose runs
    lie in one folder.

    Raises:
        UserError: no such file, one that is no report of this study as it is, runs of another recipe, of
            other data or that the study does not have; of another study, no run that both have.
    """
    study = results.study
    there = _read(file, results)
    if there.name != results.name:
        there = replace(there, rows=_shared(there, results, file), sizes=[], distances=[])
    here = {(row.problem, row.variant, seed) for row in results.rows for seed in row.scores}
    theirs = {(row.problem, row.variant): row for row in there.rows if row.scores}
    rows = []
    for row in results.rows:
        other = theirs.pop((row.problem, row.variant), None)
        if other is not None and (different := unlike(other.recipe, _comparable(row, other))):
            raise UserError(
                f"--with {file}: its runs of {_name(row)} are of another recipe "
                f"({'; '.join(different[:3])}): they are no part of this study; leave "
                "it out, or change the study"
            )
        if other is not None and (more := sorted(other.scores.keys() - set(study.seeds))):
            raise UserError(
                f"--with {file} has a seed {more[-1]} of {_name(row)}, and the study has "
                f"{', '.join(map(str, study.seeds))}: {_with_seed(study, more[-1])}"
            )
        rows.append(row if other is None else _joined(row, other))
    if theirs:
        known = ", ".join(map(_name, theirs.values()))
        raise UserError(f"--with {file} has runs that this study does not have: {known}")
    _check_data(study, file, there.rows, results.rows)
    return replace(
        results,
        rows=rows,
        undone=sum(seed not in row.scores for row in rows for seed in study.seeds),
        sizes=_sizes(study, there.sizes, results.sizes, here),
        distances=_distances(study, there.distances, results.distances, here),
    )


def _shared(there: Results, here: Results, file: Path) -> list[Row]:
    """The runs of another study's report that this one has too, under the names that they have here."""

    def of_ours(by_seed: Mapping[int, T]) -> dict[int, T]:
        return {seed: value for seed, value in by_seed.items() if seed in here.study.seeds}

    found = [
        replace(
            other,
            problem=row.problem,
            variant=row.variant,
            scores=of_ours(other.scores),
            curves=of_ours(other.curves),
            machines=of_ours(other.machines),
        )
        for row, other in product(here.rows, there.rows)
        if other.scores and not unlike(other.recipe, _comparable(row, other))
    ]
    if not found:
        raise UserError(
            f"--with {file} is a report of the study {there.name!r}, which has no run of {here.name!r}: give "
            "one that has"
        )
    return found


def _comparable(row: Row, other: Row) -> Mapping[str, Any]:
    """Its recipe, without what reports of before do not tell."""
    return {
        name: value for name, value in row.recipe.items() if name in other.recipe or name not in BEGIN_AND_END
    }


def _check_data(study: Study, file: Path, there: Sequence[Row], here: Sequence[Row]) -> None:
    """Refuse runs of other images than those here: their scores would not compare."""
    for other, row in product(there, here):
        if not (other.data and row.data):  # no run has ended, or reports of before, which do not tell
            continue
        same = study.images(other.problem, other.variant) == study.images(row.problem, row.variant)
        if same and (different := unlike(other.data, row.data)):
            raise UserError(
                f"--with {file}: its runs of {_name(other)} are of other data than those of {_name(row)} "
                f"here ({'; '.join(different)}), and their scores do not compare: leave it out"
            )


def _read(file: Path, here: Results) -> Results:
    study = here.study
    try:
        document = json.loads(file.read_text())
        own = (name := document["study"]) == here.name
        for field in ("metric", "rescored", "distance_images") if own else ("metric",):
            ours = getattr(study, field)
            if (theirs := document.get(field, ours)) != ours:  # reports of before have the metric alone
                raise UserError(
                    f"--with {file} is a report with {field} {brief(theirs)}, and the study has "
                    f"{brief(ours)}: write it anew where its runs are, by the study as it is"
                )
        rows = TypeAdapter(list[Row]).validate_python([_row(row, document) for row in document["rows"]])
        _check_rows(rows)
        if not own:
            return Results(study, name, rows, 0, [], [])
        sizes = TypeAdapter(list[SizeRow]).validate_python(document["sizes"])
        distances = TypeAdapter(list[DistanceRow]).validate_python(document["distances"])
        if strange := {row.name for row in sizes} - _ways(study).keys():
            raise ValueError(f"the study has no way {min(strange)!r} to score")
        if odd := {size for row in sizes for size in row.scores} - {*study.sizes}:
            raise ValueError(f"the study does not score at {min(odd)} pixels")
        return Results(study, name, rows, document["runs_to_come"], sizes, distances)
    except FileNotFoundError:
        raise UserError(f"--with {file}: there is no such file; give a report.json of this study") from None
    except (ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"--with {file} is no report.json of this version ({said}): write it anew where its runs are"
        ) from None


def _check_rows(rows: Sequence[Row]) -> None:
    """ValueError for rows that no study writes: one twice, or scores that are not where their curves end."""
    for number, row in enumerate(rows):
        if (row.problem, row.variant) in {(one.problem, one.variant) for one in rows[:number]}:
            raise ValueError(f"{_name(row)} is in it twice")
        ends = {seed: curve[-1][1] for seed, curve in row.curves.items() if curve}
        if ends != row.scores:
            raise ValueError(f"the scores of {_name(row)} are not those that its curves end with")


def _row(found: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Row`."""
    known = found["params"] is not None
    return {
        **{name: found[name] for name in ("problem", "variant", "scores", "curves")},
        "data": found.get("data", {}),
        "seconds": found["seconds_an_epoch"],
        "machines": found.get("machines", {}),
        "cost": Cost(found["params"], found["madds"]) if known else None,
        "recipe": {**document["recipe"], **found["recipe"]},
    }


def _joined(here: Row, there: Row) -> Row:
    seconds = {
        machine: min(one.seconds[machine] for one in (here, there) if machine in one.seconds)
        for machine in {**there.seconds, **here.seconds}
    }
    return replace(
        here,
        scores=_by_seed(there.scores, here.scores),
        curves=_by_seed(there.curves, here.curves),
        seconds=seconds,
        machines=_by_seed(there.machines, here.machines),
        cost=here.cost or there.cost,
        data=here.data or there.data,
    )


def _by_seed(there: Mapping[int, T], here: Mapping[int, T]) -> dict[int, T]:
    return dict(sorted({**there, **here}.items()))


def _sizes(
    study: Study, there: Sequence[SizeRow], here: Sequence[SizeRow], present: Set[Run]
) -> list[SizeRow]:
    """`present` are the runs that are here: what is said of them there does not count."""
    whole: dict[tuple[str, str, str], SizeRow] = {}
    ways = _ways(study)
    for rows, left_out in ((there, present), (here, set())):
        for row in rows:
            made = whole.setdefault(key := (row.problem, row.name, row.metric), SizeRow(*key))
            for size, scores in row.scores.items():
                for seed, score in scores.items():
                    if (row.problem, ways[row.name], seed) not in left_out:
                        made.scores[size] = _by_seed(made.scores.get(size, {}), {seed: score})
    metrics, problems, names = [study.metric, RANKING], [*study.problems] or [""], [*ways]
    return sorted(
        (row for row in whole.values() if row.scores),
        key=lambda row: (metrics.index(row.metric), problems.index(row.problem), names.index(row.name)),
    )


def _distances(
    study: Study, there: Sequence[DistanceRow], here: Sequence[DistanceRow], present: Set[Run]
) -> list[DistanceRow]:
    whole: dict[tuple[str, str, str], DistanceRow] = {}
    for rows, left_out in ((there, present), (here, set())):
        for row in rows:
            made = whole.setdefault(key := (row.problem, row.variant, row.layer), DistanceRow(*key))
            for seed, heads in row.heads.items():
                if (row.problem, row.variant, seed) not in left_out:
                    made.heads = _by_seed(made.heads, {seed: heads})
    problems, variants = [*study.problems] or [""], [*study.variants]
    return sorted(
        (row for row in whole.values() if row.heads),
        key=lambda row: (problems.index(row.problem), variants.index(row.variant)),
    )


def _with_seed(study: Study, seed: int) -> str:
    """How a study gets it."""
    counted = study.seeds == tuple(range(len(study.seeds)))
    return f"give --seeds {seed + 1}" if counted else "add it to the study's seeds"


def _ways(study: Study) -> dict[str, str]:
    """By name of each way to score, the variant whose runs are scored."""
    return {way: variant for variant in study.variants for way in ways_of(study, variant)}


def _name(row: Row) -> str:
    return "/".join(filter(None, (row.problem, row.variant)))
