"""docs/results.md's tables of times: measured steps, and what the papers' trainings would take by them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from table_parts import NONE_YET, RESULTS, ROOT, Lines, markdown, sections

from attneck.commands.bench_table import ROUNDS
from attneck.models import catalog
from attneck.papers.results import DATA
from attneck.papers.step_times import StepTimes, key, read_step_times
from attneck.papers.tables import Row, Table
from attneck.runs.printed import recipe_of
from attneck.training.recipe_file import load_recipe, shipped_recipes

FLOPS = 6
"""Of a training step for each multiply-add of the forward pass: two there, and twice as many backward."""
PRINTED = {"14": 32, "5": 64 / 8}
"""Images a TPU-v3 core takes in a printed step of a table: one core's 32, or 64 over a v3-8's eight."""


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
    """Those of every row with a command, each once, where it is first: by one recipe, and of one network."""
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    found: dict[str, Training] = {}
    for section in sections():
        for checked in section.rows:
            recipe = recipe_of(checked.row, recipes) if checked.train else None
            if checked.train is None or recipe is None:
                continue
            images = (
                recipe.steps * recipe.steps_batch
                if recipe.steps and recipe.steps_batch
                else (recipe.epochs or 0) * DATA[section.table.task]
            )
            whole = checked.row.detector is None and "madds_g" in checked.counts
            madds = checked.counts["madds_g"].count if whole else None
            network = catalog.find(recipe.model.name, dict(recipe.model.options)).options.shortest()
            rest = recipe.model_dump(exclude={"model": {"name", "options"}})
            found.setdefault(
                f"{network!r} {rest}", Training(section.paper.name, section.table, checked.row, images, madds)
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
def measured_steps() -> list[tuple[StepTimes, float]]:
    """The measured steps of each device, and its usual FLOP/s."""
    found = []
    for times in read_step_times([RESULTS]):
        rates = [
            FLOPS * training.madds / one * 1000
            for training in _networks()
            if training.madds and (one := times.of(training.row))
        ]
        found.append((times, median(rates)))
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
    header += [
        f"{'GPU' if _is_gpu(times) else 'core'}-hours, {times.device}, {times.dtype}" for times, _ in devices
    ]
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
        for times, rate in devices:
            each = [_measured_hours(training, times.ms_an_image, rate) for training in group]
            digits = 3 if times.rounds >= ROUNDS else 1
            line.append(_sum([hours for hours in each if hours is not None], len(group), digits))
        lines.append(line)
    return markdown(lines)


def _hours(training: Training, ms_an_image: float) -> float:
    return training.images * ms_an_image / 3.6e6


def _measured_hours(training: Training, times: Mapping[str, float], rate: float) -> float | None:
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


def _sum(values: list[float], of: int, digits: int = 3) -> str:
    """The sum to so many digits, and of how many trainings it is where not of all."""
    if not values:
        return ""
    rounded = float(f"{sum(values):.{digits}g}")
    said = f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.2g}"
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
                    (f"{mine:,.0f}" if mine >= 100 else f"{mine:.3g}") if mine else "",
                    f"{mine / measured['R50']:.2f}" if mine else "",
                    f"{theirs:g}" if theirs else "",
                    f"{theirs / printed['R50']:.2f}" if theirs else "",
                ]
            )
        said = "; ".join(ratios(document))
        where = Path(times.path).relative_to(ROOT).as_posix()
        parts.append(
            f"{times.device}, {times.dtype}, {document['clock']} (`{where}`):\n\n{markdown(lines)}\n\n{said}."
        )
    return "\n\n".join(parts) or NONE_YET


def step_ratios() -> str:
    """The steps of Table 5's networks over R50's, by the size of the image."""
    from attneck.commands import bench_table

    parts = []
    for path in sorted(RESULTS.rglob("*.json")):
        if f'"{bench_table.RATIOS}"' not in (text := path.read_text())[:200]:
            continue
        document = json.loads(text)
        environment = document["environment"]
        rounds = min(len(row["samples_ms"]) for row in document["rows"])
        parts.append(
            f"{environment['gpu'] or environment['processor']}, batch {document['batch']}, "
            f"{document['dtype']}, {document['clock']}, rounds {rounds} "
            f"(`{path.relative_to(ROOT).as_posix()}`):\n\n"
            f"{markdown([list(bench_table.STEP_RATIOS), *bench_table.step_ratios(document)])}"
        )
    return "\n\n".join(parts) or NONE_YET
