"""A study's report: the table as Markdown, CSV, LaTeX and JSON, and pictures of differences and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from attneck.errors import UserError
from attneck.files import write_atomic, write_csv, write_json
from attneck.studies import size_differences
from attneck.studies.distance import DistanceRow
from attneck.studies.distance import table as distance_table
from attneck.studies.results import Row, baseline_of
from attneck.studies.size_differences import Pair
from attneck.studies.sizes import SizeRow, unscored
from attneck.studies.sizes import table as size_table
from attneck.studies.statistics import decimals_of, pairs_of, told
from attneck.studies.study import Study

if TYPE_CHECKING:
    from attneck.explain.bands import Curve
    from attneck.explain.differences import Line

Cells = list[str]
NOT_RUN = "not run"
PRINTED = {"top1": "top-1", "top1_error": "error", "ap_bbox": "box AP"}
"""The papers' figures that stand beside a variant, the first that its row has."""

CHANCE = (
    "An interval says what other seeds would give on the same held-out images, not what other images would; "
    "and of twenty differences that are none, one has by chance an interval that does not hold 0."
)
"""What no interval says."""

SPECIAL = {letter: f"\\{letter}" for letter in "%_&#$"} | {"±": r"$\pm$", "\\": r"\textbackslash{}"}
"""Of LaTeX."""


@dataclass(frozen=True)
class Results:
    """All that a study's runs say so far."""

    study: Study
    name: str
    rows: Sequence[Row]
    undone: int
    """The runs that are still to come, which the report says."""
    sizes: Sequence[SizeRow] = ()
    distances: Sequence[DistanceRow] = ()

    @property
    def pairs(self) -> list[Pair]:
        """What is compared at other sizes."""
        return size_differences.pairs(self.study, self.rows, self.sizes)


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.md, .csv, .tex and .json, and as .png and .svg differences, curves and sizes, if any.

    Returns the files written.
    """
    study, rows = results.study, results.rows
    folder.mkdir(parents=True, exist_ok=True)
    tables = [table(study, rows)]
    tables += [size_table(study, results.sizes)] if results.sizes else []
    tables += [size_differences.table(study, results.pairs)] if results.pairs else []
    tables += [distance_table(study, results.distances)] if results.distances else []
    write_atomic(folder / "report.md", page(results).encode())
    write_csv(folder / "report.csv", _runs(rows))
    write_atomic(folder / "report.tex", "\n".join(latex(head, body) for head, body in tables).encode())
    write_json(folder / "report.json", document(results))
    written = [folder / f"report.{kind}" for kind in ("md", "csv", "tex", "json")]
    if gaps := _gaps(study, rows):
        from attneck.explain import differences

        axis = f"difference to {study.baseline} ({study.metric}): mean over the seeds, 95 % interval"
        for ending in ("png", "svg"):
            differences.draw(gaps, folder / f"differences.{ending}", axis, study.metric)
            written.append(folder / f"differences.{ending}")
    pictures: list[tuple[str, Sequence[Row | SizeRow], str]] = [
        ("curves", rows, "training images seen"),
        (
            "sizes",
            [row for row in results.sizes if row.metric == study.metric],
            "side of the image in pixels",
        ),
    ]
    likewise = {
        pair.way.name: pair.against.name
        for pair in results.pairs
        if pair.run is not pair.other  # else it is a variant's own, as it was trained
    }
    for name, those, what in pictures:
        if not any(row.curves for row in those):
            continue
        from attneck.explain.bands import draw

        curves: dict[str, dict[str, Mapping[int, Curve]]] = {}
        for row in those:
            curves.setdefault(row.problem, {})[row.name] = row.curves
        begun = {problem: variants for problem, variants in curves.items() if any(variants.values())}
        for ending in ("png", "svg"):
            path = folder / f"{name}.{ending}"
            draw(begun, study.metric, path, study.baseline, study.threshold, what, likewise)
            written.append(folder / f"{name}.{ending}")
    return written


def _gaps(study: Study, rows: Sequence[Row]) -> dict[str, list[Line]]:
    """By problem, headed by the baseline's score, each variant's difference to it that is a number."""
    from attneck.explain.differences import Line

    digits, found = decimals_of(study.metric), {}
    for problem in _problems(rows):
        base = baseline_of(study, rows, problem)
        gains = [(row, row.against(base)) for row in rows if row.problem == problem]
        lines = [
            Line(row.variant, {"": (gain.mean, gain.interval)}, told(row.scores, digits))
            for row, gain in gains
            if gain is not None and isfinite(gain.mean)
        ]
        if lines:
            found[" ".join(filter(None, (problem, f"({base.variant} {told(base.scores, digits)})")))] = lines
    return found


AUC = (
    "of two answers, the area under the ROC curve (auc, in per cent), which is right whatever the threshold "
    "between them"
)


def page(results: Results) -> str:
    """The report as Markdown."""
    study = results.study
    parts = [f"# {results.name}", study.about.strip()]
    if len(study.problems) > 1:
        parts += [markdown(*overview(study, results.rows)).strip()]
    parts += [markdown(*table(study, results.rows)).strip(), *notes(study, results.undone)]
    parts += timed_on(results.rows)
    if results.sizes or not_scored(results):
        parts += [
            "## At other sizes",
            f"The {study.metric} of the same weights on held-out images of these sides, and, {AUC}: mean ± "
            "standard deviation (n).",
            markdown(*size_table(study, results.sizes)).strip() if results.sizes else "",
            *not_scored(results),
            *_size_differences(results),
        ]
    if results.distances:
        parts += [
            "## How far attention looks",
            "Pixels between a place and what a head looks at from there, by its weights: the mean over "
            f"all places of {study.distance_images} held-out images, or of all where there are fewer; then "
            "mean ± standard deviation over the seeds (n).",
            markdown(*distance_table(study, results.distances)).strip(),
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _size_differences(results: Results) -> list[str]:
    """What ways differ by at each size, if there is anything to compare."""
    told = (
        "What they differ by there, seed by seed, with Student's 95 % interval: each way to score less "
        f"{results.study.baseline}, scored likewise; and less its own variant, as that was trained. Bold: "
        "the interval does not hold 0."
    )
    table = size_differences.table(results.study, results.pairs, mark="**")
    return [told, markdown(*table).strip()] if results.pairs else []


def not_scored(results: Results) -> list[str]:
    """A line where runs that have ended were scored at no other size, or not in each way."""
    ended = [(row.problem, row.variant) for row in results.rows if row.scores]
    return unscored(results.study, ended, results.sizes)


def overview(study: Study, rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """A row for each variant, a column for each problem, and the cost: mean ± standard deviation (n).

    A mean is bold where it is better than the baseline's by more than the seeds' spread explains, and in
    italics where it is worse by more.
    """
    costs = {
        "parameters": lambda row: f"{row.cost.params:,}",
        "multiply-adds (M)": lambda row: f"{row.cost.madds / 1e6:,.1f}",
    }
    body = []
    for variant in dict.fromkeys(row.variant for row in rows):
        own = {row.problem: row for row in rows if row.variant == variant}
        line = [variant]
        for problem in _problems(rows):
            row = own[problem]
            said = told(row.scores, decimals_of(study.metric)) or NOT_RUN
            found = row.against(baseline_of(study, rows, problem))
            less, mark = study.less_is_better, ""
            if found is not None:
                mark = "**" * found.surely(lower=less) or "_" * found.surely(lower=not less)
            line.append(f"{mark}{said}{mark}")
        costed = [row for row in own.values() if row.cost]
        # Of images of another size in each problem they differ.
        line += ["; ".join(dict.fromkeys(cell(row) for row in costed)) for cell in costs.values()]
        body.append(line)
    return ["variant", *_problems(rows), *costs], body


def table(study: Study, rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """The head, and a row of words for each variant on each problem."""
    printed = printed_of(study)
    columns: dict[str, Callable[[Row], str]] = {
        "problem": lambda row: row.problem,
        "variant": lambda row: row.variant,
        f"{study.metric}, mean ± std (n)": lambda row: told(row.scores, decimals_of(study.metric)) or NOT_RUN,
        f"difference to {study.baseline} [95 %]": lambda row: _difference(study, rows, row),
        "verdict": lambda row: _verdict(study, rows, row),
        f"images to {study.threshold or 0:g}": lambda row: _reached(study, row),
        "parameters": lambda row: f"{row.cost.params:,}" if row.cost else "",
        "multiply-adds (M)": lambda row: f"{row.cost.madds / 1e6:,.1f}" if row.cost else "",
        "seconds an epoch": lambda row: _seconds(row, len(machines(rows)) > 1),
        "printed": lambda row: printed.get(row.variant, ""),
    }
    drop = set()
    drop |= set() if study.problems else {"problem"}
    drop |= set() if study.threshold is not None else {"images to 0"}
    drop |= set() if printed else {"printed"}
    kept = {name: cell for name, cell in columns.items() if name not in drop}
    return list(kept), [[cell(row) for cell in kept.values()] for row in rows]


def machines(rows: Sequence[Row]) -> list[str]:
    """The processors and GPUs that epochs were timed on, each once."""
    return list(dict.fromkeys(machine for row in rows for machine in row.seconds))


def _seconds(row: Row, named: bool) -> str:
    """Of an epoch, with the machine where there are several."""
    return "; ".join(
        f"{took:,.1f}" + (f" ({machine})" if named else "") for machine, took in row.seconds.items()
    )


def _difference(study: Study, rows: Sequence[Row], row: Row) -> str:
    """With the number of pairs, where one side has more seeds: its mean is not that of the pairs.

    Also with how many of them are of two machines.
    """
    baseline = baseline_of(study, rows, row.problem)
    found = row.against(baseline)
    if found is None:
        return ""
    seeds = max(len(row.scores), len(baseline.scores))
    return found.told(decimals_of(study.metric)) + pairs_of(found.n, seeds, row.apart(baseline, row.scores))


def _verdict(study: Study, rows: Sequence[Row], row: Row) -> str:
    baseline = baseline_of(study, rows, row.problem)
    if not row.scored_as(baseline):
        return "other held-out images"
    found = row.against(baseline)
    return "" if found is None else found.verdict(decimals_of(study.metric))


def _reached(study: Study, row: Row) -> str:
    found = _images_to(study, row)
    reached = [images for images in found.values() if images is not None]
    if not found:
        return ""
    if not reached:
        return f"never, in {max(curve[-1][0] for curve in row.curves.values()):,}"
    return f"{median(reached):,.0f} ({len(reached)} of {len(found)})"


def _images_to(study: Study, row: Row) -> dict[int, int | None]:
    if study.threshold is None:
        return {}
    return row.images_to(study.threshold, less_is_better=study.less_is_better)


def printed_of(study: Study) -> dict[str, str]:
    """The papers' figure of a variant, with where it stands.

    Raises UserError for a place of the study's `paper` that is none.
    """
    if not study.paper:
        return {}
    from attneck.papers.tables import load_paper

    found = {}
    for variant, where in study.paper.items():
        paper, number, label = [*where.split("/", 2), "", ""][:3]
        table = load_paper(paper).table(number)
        row = next((row for row in table.rows if row.label == label), None)
        key = next((column.key for column in table.columns if column.key in PRINTED), None)
        if row is None or key is None or key not in row.printed:
            raise UserError(
                f"paper: {variant} is {where!r}, and {paper}'s table {number} has no such row with a score: "
                "give PAPER/TABLE/LABEL as attneck papers prints them"
            )
        found[variant] = f"{row.printed[key]} ({PRINTED[key]}, table {number})"
    return found


def notes(study: Study, undone: int) -> list[str]:
    """What the table's reader has to know, by paragraph."""
    said = [
        f"Each figure is the last score of the held-out images ({study.metric}), over seeds "
        f"{', '.join(map(str, study.seeds))}; n is how many of them have ended. The difference is taken seed "
        "by seed; its 95 % interval is Student's. Where it holds 0 there is no difference that counts. "
        f"{CHANCE}",
    ]
    if study.threshold is not None:
        said.append(
            f"Images to {study.threshold:g}: training images seen when the score first reached it, the "
            "median of the seeds that did."
        )
    if len(study.problems) > 1:
        said.append(bold(study))
    return said + ended(undone)


def timed_on(rows: Sequence[Row]) -> list[str]:
    """Where the seconds are from, if there are any."""
    where = " and ".join(machines(rows))
    told = f"Seconds an epoch are those of the fastest seed on {where}; runs beside each other take longer."
    return [told] if where else []


def bold(study: Study) -> str:
    """What a bold mean is, and one in italics."""
    where, other = ("below", "above") if study.less_is_better else ("above", "below")
    return f"Bold: {where} the baseline by an interval that does not hold 0; in italics: {other} it by one."


def ended(undone: int) -> list[str]:
    """How many runs are still to come, if any."""
    if undone == 1:
        return ["**One run has not ended yet**, and is not in it."]
    return [f"**{undone} runs have not ended yet**, and are not in it."] if undone else []


def markdown(head: Cells, body: list[Cells]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(head: Cells, body: list[Cells]) -> str:
    """A table of LaTeX, for the package booktabs."""

    def line(cells: Cells) -> str:
        return " & ".join("".join(SPECIAL.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    rows = "\n".join(map(line, body))
    return (
        f"\\begin{{tabular}}{{{'l' * len(head)}}}\n\\toprule\n{line(head)}\n\\midrule\n{rows}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _runs(rows: Sequence[Row]) -> Iterator[Sequence[object]]:
    """One line a run, so that any statistics can be made from it."""
    yield "problem", "variant", "seed", "score", "params", "madds"
    for row in rows:
        cost = (row.cost.params, row.cost.madds) if row.cost else ("", "")
        for seed, score in sorted(row.scores.items()):
            yield row.problem, row.variant, seed, score, *cost


def document(results: Results) -> dict[str, object]:
    """Everything in the report, as JSON has it."""
    study, rows = results.study, results.rows
    recipe = _common([row.recipe for row in rows])
    found = []
    for row in rows:
        spread, baseline = row.spread, baseline_of(study, rows, row.problem)
        against = row.against(baseline)
        found.append(
            {
                "problem": row.problem,
                "variant": row.variant,
                "n": spread.n if spread else 0,
                "mean": spread.mean if spread else None,
                "std": spread.std if spread else None,
                "scores": row.scores,
                "difference": against
                and asdict(against) | {"of_two_machines": row.apart(baseline, row.scores)},
                "verdict": against and against.verdict(decimals_of(study.metric)),
                "images_to": None if study.threshold is None else _images_to(study, row),
                "params": row.cost and row.cost.params,
                "madds": row.cost and row.cost.madds,
                "seconds_an_epoch": row.seconds,
                "machines": row.machines,
                "curves": row.curves,
                "recipe": {name: value for name, value in row.recipe.items() if name not in recipe},
                "data": row.data,
            }
        )
    return {
        "study": results.name,
        "about": study.about,
        "metric": study.metric,
        "baseline": study.baseline,
        "rescored": study.rescored,
        "distance_images": study.distance_images,
        "runs_to_come": results.undone,
        "recipe": recipe,
        "rows": found,
        "sizes": [asdict(row) for row in results.sizes],
        "size_differences": size_differences.document(results.pairs),
        "distances": [asdict(row) for row in results.distances],
    }


def _common(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all of them have with the same value."""
    first = recipes[0] if recipes else {}
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in recipes)
    }


def _problems(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.problem for row in rows))
