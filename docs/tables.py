"""README.md's and docs/results.md's tables and pictures, and docs/papers.md, from the files in results/.

`make tables` writes them: a table stands between `<!-- table: NAME -->` and `<!-- end -->`, and what is
around those stays as it is. tests/test_results.py compares them with what would be written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import attention_picture
import costs
import gains_picture
import on_gpu
import yaml
from table_parts import RESULTS, ROOT, Lines, markdown, sections

from attneck.commands import papers
from attneck.commands.measured import Results
from attneck.files import number, write_atomic
from attneck.papers.layout import Checked, tally
from attneck.papers.results import FinishedRun
from attneck.studies.report import CHANCE
from attneck.studies.statistics import Difference, decimals_of

PAGES = ("README.md", "docs/results.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write every table, page and picture anew."""
    attention_picture.draw()
    gains_picture.draw()
    figure_9(ROOT / "docs" / "botnet-figure-9.svg")
    for name, text in pages().items():
        path = ROOT / name
        if path.read_text() != text:
            write_atomic(path, text.encode())
            print(f"wrote {name}")


def figure_9(path: Path) -> None:
    """Draw BoTNet's Figure 9 with the steps in results/."""
    with redirect_stdout(io.StringIO()):
        papers.main(["--figure", "9", "--results", "results", "--save", str(path)])


def pages() -> dict[str, str]:
    """The pages as they should be, by their names."""
    said = io.StringIO()
    with redirect_stdout(said):
        papers.main(["--results", "results", "--markdown"])
    return {"docs/papers.md": said.getvalue()} | {name: filled((ROOT / name).read_text()) for name in PAGES}


def filled(page: str) -> str:
    """A page with every table anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


# README's: chosen runs


def chosen(name: str) -> str:
    """A table of tables.yaml."""
    about = yaml.safe_load((ROOT / "docs" / "tables.yaml").read_text())[name]
    lines: Lines = [about["header"]]
    for row in about["rows"]:
        scores = _scores(row["run"], row.get("scores", about["scores"]))
        if "scores" in row:  # of another kind than the columns': the kind is said
            scores = [f"{kind} {score}" for kind, score in zip(row["scores"], scores, strict=True)]
        scores += [""] * (len(about["header"]) - 2 - len(scores))
        if "run" in row:
            _same_command(row["command"], RESULTS / row["run"] / "environment.json")
        lines.append([row["what"], *scores, row["command"]])
    return markdown(lines)


def _scores(run: str, kinds: Iterable[str]) -> list[str]:
    summary = json.loads((RESULTS / run / "summary.json").read_text())
    return [f"{summary[f'val_{kind}']:.2f}" for kind in kinds]


def _same_command(command: str, environment: Path) -> None:
    """ValueError where the command shown changes a field that the run's own did not, or otherwise."""
    said = re.search(r"`(?:attneck|…) ?(.*)`", command)
    if said is None or not environment.is_file():
        return
    own = json.loads(environment.read_text())["command"]
    for field in re.findall(r"--\S+ [^-A-Z]\S*", said[1]):
        if field not in own:
            raise ValueError(f"{environment.parent}: {field} is no part of its command, {own}")


# docs/results.md's: what reproduces


def counts() -> str:
    """How many printed counts come out, by table."""
    lines: Lines = [["paper", "table", "rows with counts", "come out", "differ"]]
    totals = [0, 0, 0]
    for section in sections():
        found = tally([section])
        row = [found["rows"], found["same"], found["differ"]]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        if found["rows"]:
            lines.append([section.paper.name, section.table.id, *map(str, row)])
    return markdown([*lines, ["both", "all", *(f"**{total}**" for total in totals)]])


def scores() -> str:
    """Runs in results/ that are a printed row's, beside its figures."""
    lines: Lines = [["paper", "table", "row", "printed", "measured"]]
    for section in sections():
        for checked in section.rows:
            for column in section.table.columns:
                found = papers_measured(column.key, checked)
                if found:
                    printed = checked.row.printed.get(column.key, "")
                    where = [section.paper.name, section.table.id, checked.row.label]
                    lines.append([*where, f"{column.label} {printed}", found])
    return (
        markdown(lines)
        if len(lines) > 1
        else "No run in results/ has the recipe, data and schedule of a row."
    )


def papers_measured(column: str, checked: Checked) -> str:
    """The mean of a row's runs in a column's score, or nothing."""
    from attneck.papers.results import measured

    return str(measured(column, checked.runs) or "")


def studies() -> str:
    """Of every study's report in results/ the differences to its baseline that count."""
    lines: Lines = [["study", "metric", "compared with", "differences", "those with 95 % intervals off 0"]]
    for path in sorted(RESULTS.rglob("report.json")):
        report = json.loads(path.read_text())
        digits = decimals_of(report["metric"])
        gaps = [row for row in report["rows"] if row["difference"]]
        sure = [told for row in gaps if (told := _surely(row, digits))]
        page = path.with_suffix(".md").relative_to(ROOT).as_posix()
        name = f"[{report['study']}](../{page})"
        lines.append([name, report["metric"], report["baseline"], str(len(gaps)), "; ".join(sure) or "none"])
    return f"{markdown(lines)}\n\n{CHANCE}" if len(lines) > 1 else "No study's report is in results/ yet."


def _surely(row: dict[str, Any], digits: int) -> str:
    """The difference of a report's row, in words, where its interval does not hold 0; else nothing."""
    of = row["difference"]
    found = Difference(of["n"], number(of["mean"]), of["interval"])
    if not (found.surely() or found.surely(lower=True)):
        return ""
    return " ".join(filter(None, (row["problem"], row["variant"], found.told(digits))))


def runs() -> str:
    """Every run in results/, in a line."""
    lines: Lines = [["run", "network", "data", "length", "scores"]]
    for run in Results([RESULTS]).runs:
        data = run.recipe["data"]
        size = f", {data['image_size']} pixels" if data.get("image_size") else ""
        lines.append(
            [
                f"[{run.folder}](../{run.folder})",
                f"`{_network(run)}`",
                f"{data['name']}{size}",
                _length(run),
                _said(run),
            ]
        )
    return markdown(lines)


def _network(run: FinishedRun) -> str:
    model = run.recipe["model"]
    return model["name"] + (
        f" + {model['surgery']}" if model.get("surgery", "none") not in (None, "none") else ""
    )


def _length(run: FinishedRun) -> str:
    epochs = f"{run.epoch:g} epoch" + ("s" if run.epoch != 1 else "")
    return f"{epochs}, {run.steps:,} steps"


def _said(run: FinishedRun) -> str:
    kinds = {"top1": "top-1", "box_AP": "box AP", "mask_AP": "mask AP", "mAP": "mAP"}
    return ", ".join(f"{word} {run.scores[kind]:.2f}" for kind, word in kinds.items() if kind in run.scores)


TABLES: dict[str, Callable[[], str]] = {
    "top1": lambda: chosen("top1"),
    "ap": lambda: chosen("ap"),
    "counts": counts,
    "scores": scores,
    "studies": studies,
    "runs": runs,
    "steps": costs.steps,
    "step_ratios": costs.step_ratios,
    "costs": costs.costs,
    "detectors": costs.detectors,
    "gpu_attention": on_gpu.attention,
    "gpu_steps": on_gpu.steps,
    "gpu_tests": on_gpu.tests,
}

if __name__ == "__main__":
    main()
