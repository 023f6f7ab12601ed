"""The tables of README.md and docs/results.md, and the page docs/papers.md, from the files in results/.

`make tables` writes them: a table stands between `<!-- table: NAME -->` and `<!-- end -->`, and what is
around those stays as it is. tests/test_results.py compares the pages with what would be written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import yaml

from attneck.commands import papers
from attneck.commands.measured import Results
from attneck.files import write_atomic
from attneck.papers.layout import Checked, Section, tally
from attneck.papers.results import DATA, FinishedRun
from attneck.papers.step_times import StepTimes, key, read_step_times
from attneck.papers.tables import Row, Table
from attneck.runs.printed import recipe_of
from attneck.training.recipe_file import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGES = ("README.md", "docs/results.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

FLOPS = 6
"""Of a training step for each multiply-add of the forward pass: two there, and twice as many backward."""
PRINTED = {"14": 32, "5": 64 / 8}
"""Images a TPU-v3 core takes in a printed step of a table: one core's 32, or 64 over a v3-8's eight."""

Lines = list[list[str]]


def main() -> None:
    """Write every table and page anew."""
    for name, text in pages().items():
        path = ROOT / name
        if path.read_text() != text:
            write_atomic(path, text.encode())
            print(f"wrote {name}")


def pages() -> dict[str, str]:
    """The pages as they should be, by their names."""
    said = io.StringIO()
    with redirect_stdout(said):
        papers.main(["--results", "results", "--markdown"])
    return {"docs/papers.md": said.getvalue()} | {name: filled((ROOT / name).read_text()) for name in PAGES}


def filled(page: str) -> str:
    """A page with every table anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def markdown(lines: Lines) -> str:
    """A table, its header first."""
    header, *rows = lines
    told = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, *rows)
    ]
    return "\n".join([told[0], "|" + "---|" * len(header), *told[1:]])


# README's: chosen runs


def chosen(name: str) -> str:
    """A table of tables.yaml."""
    about = yaml.safe_load((ROOT / "docs" / "tables.yaml").read_text())[name]
    lines: Lines = [about["header"]]
    for row in about["rows"]:
        scores = row.get("shown") or _scores(row["run"], row.get("scores", about["scores"]))
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


@cache
def sections() -> list[Section]:
    """Every printed row, with its counts and the runs in results/ that are its own."""
    return papers.compare_all(papers.choose(None, None), Results([RESULTS]))


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
    """Every study's report in results/: each variant's score, with its interval and verdict."""
    parts = []
    for path in sorted(RESULTS.rglob("report.json")):
        report = json.loads(path.read_text())
        several = len({row["problem"] for row in report["rows"]}) > 1
        lines: Lines = [
            ["problem"] * several
            + [
                "variant",
                f"{report['metric']}, mean ± std (n)",
                f"over {report['baseline']} [95 %]",
                "verdict",
            ]
        ]
        for row in report["rows"]:
            if row["mean"] is None:  # no run of it has ended: the count of those to come says so
                continue
            spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
            mean = f"{row['mean']:.2f}{spread} ({row['n']})"
            other = row["difference"] or {}
            interval = other.get("interval")
            gap = f"{other['mean']:+.2f}" if other else ""
            gap += f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
            name = [row["problem"]] * several + [row["variant"]]
            lines.append([*name, mean, gap, row["verdict"] or ""])
        to_come = report["runs_to_come"]
        note = f"\n\n{to_come} runs of it have not ended yet." if to_come else ""
        where = path.parent.relative_to(ROOT).as_posix()
        parts.append(
            f"**{report['study']}** (`{where}`): {report['about'].strip()}\n\n{markdown(lines)}{note}"
        )
    return "\n\n".join(parts) or "No study's report is in results/ yet."


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


# docs/results.md's: what it would cost


@dataclass(frozen=True)
class Training:
    """A training that a printed row needs."""

    paper: str
    table: Table
    row: Row
    images: float
    """Training images that it sees."""
    madds: int | None
    """Of one image, the whole network's; None for a detector, of which the backbone alone is counted."""


@cache
def trainings() -> list[Training]:
    """Those of every row with a command, each once, where it is first."""
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    found: dict[str, Training] = {}
    for section in sections():
        for checked in section.rows:
            recipe = recipe_of(section.table, checked.row, recipes) if checked.train else None
            if checked.train is None or recipe is None:
                continue
            images = (
                recipe.steps * recipe.steps_batch
                if recipe.steps and recipe.steps_batch
                else (recipe.epochs or 0) * DATA[section.table.task]
            )
            whole = checked.row.detector is None and "madds_g" in checked.counts
            madds = checked.counts["madds_g"].count if whole else None
            found.setdefault(
                checked.train, Training(section.paper.name, section.table, checked.row, images, madds)
            )
    return list(found.values())


@cache
def printed_steps() -> dict[str, float]:
    """Milliseconds of a TPU-v3 core for an image, by network, as BoTNet's Tables 5 and 14 print them."""
    found: dict[str, float] = {}
    for section in sections():
        images = PRINTED.get(section.table.id)
        if section.paper.name != "botnet" or images is None:
            continue
        for checked in section.rows:
            row = checked.row
            if "step_ms" in row.printed and "step time are copies" not in row.reason:
                found.setdefault(_key(row), float(row.printed["step_ms"]) / images)
    return found


@cache
def measured_steps() -> list[tuple[str, bool, dict[str, float], float]]:
    """By device: its name, whether it is a GPU, ms an image by network, and its usual FLOP/s."""
    found = []
    for times in read_step_times([RESULTS]):
        rates = [
            FLOPS * training.madds / one * 1000
            for training in _networks()
            if training.madds and (one := times.of(training.row))
        ]
        found.append(
            (f"{times.device}, {times.dtype}", _is_gpu(times), dict(times.ms_an_image), median(rates))
        )
    return found


def _networks() -> Iterable[Training]:
    return [training for training in trainings() if training.row.detector is None]


def _is_gpu(times: StepTimes) -> bool:
    return "thread" not in times.device


def _key(row: Row) -> str:
    """Of what a row trains: a detector's own name is part of it."""
    return (row.detector or "") + key(row.model, row.options | row.detector_options, row.image_size)


def costs() -> str:
    """What the papers' trainings would take, once each, table by table."""
    devices = measured_steps()
    header = ["paper", "table", "trainings", "images each (M)", "EFLOP", "TPU-v3 core-hours, printed steps"]
    header += [f"{'GPU' if gpu else 'core'}-hours, {name}" for name, gpu, _, _ in devices]
    lines: Lines = [header]
    grouped: dict[tuple[str, str], list[Training]] = {}
    for training in trainings():
        grouped.setdefault((training.paper, training.table.id), []).append(training)
    everything = [training for group in grouped.values() for training in group]
    for (paper, number), group in [*grouped.items(), (("both", "all"), everything)]:
        images = sorted({training.images / 1e6 for training in group})
        span = "–".join(f"{value:.3g}" for value in dict.fromkeys((images[0], images[-1])))
        flops = [FLOPS * t.madds * t.images / 1e18 for t in group if t.madds]
        line = [paper, number, str(len(group)), span, _sum(flops, len(group))]
        line.append(
            _sum(
                [_hours(t, printed_steps()[_key(t.row)]) for t in group if _key(t.row) in printed_steps()],
                len(group),
            )
        )
        for _, _, times, rate in devices:
            each = [_measured_hours(training, times, rate) for training in group]
            line.append(_sum([hours for hours in each if hours is not None], len(group)))
        lines.append(line)
    return markdown(lines)


def _hours(training: Training, ms_an_image: float) -> float:
    return training.images * ms_an_image / 3.6e6


def _measured_hours(training: Training, times: dict[str, float], rate: float) -> float | None:
    """By the network's own step, else by its multiply-adds at the device's usual rate."""
    if training.row.detector is not None:
        return None
    if (own := times.get(_key(training.row))) is not None:
        return _hours(training, own)
    return training.images * FLOPS * training.madds / rate / 3600 if training.madds else None


def detectors() -> str:
    """What detectors would take, by the steps of them in results/."""
    lines: Lines = [["detector", "pixels", "s an image", "images (M)", "hours", "on"]]
    for path in sorted(RESULTS.rglob("step-*.json")):
        document = json.loads(path.read_text())
        environment = document["environment"]
        on = environment["gpu"] or f"{environment['processor']}, {environment['torch_threads']} thread"
        for row in document["rows"]:
            found = re.fullmatch(r".+ over .+ (\d+) b(\d+) (\w+)", row["case"])
            if found is None:
                continue
            side, batch, dtype = int(found[1]), int(found[2]), found[3]
            for name, ms in row["ms"].items():
                own = {t.images for t in trainings() if (t.row.detector, t.row.image_size) == (name, side)}
                for images in sorted(own):
                    second = ms / batch / 1000
                    hours = f"{images * second / 3600:,.0f}"
                    lines.append(
                        [
                            f"`{name}`",
                            str(side),
                            f"{second:.2f}",
                            f"{images / 1e6:.3g}",
                            hours,
                            f"{on}, {dtype}",
                        ]
                    )
    return markdown(lines)


def _sum(values: list[float], of: int) -> str:
    """The sum to three digits, and of how many trainings it is where not of all."""
    if not values:
        return ""
    said = f"{float(f'{sum(values):.3g}'):,.0f}" if sum(values) >= 10 else f"{sum(values):.2g}"
    return said + (f" ({len(values)} of {of})" if len(values) < of else "")


def steps() -> str:
    """The measured step times beside the printed ones."""
    from attneck.commands.bench_table import ratios

    parts = []
    for times in read_step_times([RESULTS]):
        document = json.loads(Path(times.path).read_text())
        lines: Lines = [
            ["", "pixels", "batch", "rounds", "ms an image", "over R50's", "printed ms", "over R50's"]
        ]
        measured = {row["name"]: row["ms"] / row["batch"] for row in document["rows"] if row["ms"]}
        printed = {row["name"]: row["printed_ms"] for row in document["rows"] if row["printed_ms"]}
        for row in document["rows"]:
            name = row["name"]
            mine, theirs = measured.get(name), printed.get(name)
            lines.append(
                [
                    name,
                    str(row["image_size"]),
                    str(row["batch"]),
                    str(len(row["samples_ms"])),
                    f"{mine:,.0f}" if mine else "",
                    f"{mine / measured['R50']:.2f}" if mine else "",
                    f"{theirs:g}" if theirs else "",
                    f"{theirs / printed['R50']:.2f}" if theirs else "",
                ]
            )
        said = "; ".join(ratios(measured, printed))
        where = Path(times.path).relative_to(ROOT).as_posix()
        parts.append(
            f"{times.device}, {times.dtype}, {document['clock']} (`{where}`):\n\n{markdown(lines)}\n\n{said}."
        )
    return "\n\n".join(parts) or "None is in results/ yet."


def bot_over_r() -> str:
    """BoT50's step over R50's, by the size of the image."""
    from attneck.commands import bench_table

    parts = []
    for path in sorted(RESULTS.rglob("*.json")):
        if f'"{bench_table.RATIOS}"' not in (text := path.read_text())[:200]:
            continue
        document = json.loads(text)
        environment = document["environment"]
        header = ["pixels", "R50 ms", "BoT50 ms", "BoT50 over R50", "printed (Mask R-CNN on them)"]
        rounds = min(len(row["samples_ms"]) for row in document["rows"])
        parts.append(
            f"{environment['gpu'] or environment['processor']}, batch {document['batch']}, "
            f"{document['dtype']}, {document['clock']}, rounds {rounds} "
            f"(`{path.relative_to(ROOT).as_posix()}`):\n\n"
            f"{markdown([header, *bench_table.bot_over_r(document)])}"
        )
    return "\n\n".join(parts) or "None is in results/ yet."


TABLES: dict[str, Callable[[], str]] = {
    "top1": lambda: chosen("top1"),
    "ap": lambda: chosen("ap"),
    "counts": counts,
    "scores": scores,
    "studies": studies,
    "runs": runs,
    "steps": steps,
    "bot_over_r": bot_over_r,
    "costs": costs,
    "detectors": detectors,
}

if __name__ == "__main__":
    main()
