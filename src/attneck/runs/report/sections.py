"""The parts of one run's report."""

from __future__ import annotations

from typing import Any

from attneck.explain.inline import of_bytes
from attneck.runs.folder import PICTURES
from attneck.runs.printed import printed
from attneck.runs.report.html import Html, join, table, tag, terms
from attneck.runs.report.story import Story
from attneck.runs.report.words import in_words
from attneck.runs.scored import Shown
from attneck.runs.scored_on import HELD_OUT
from attneck.training.pace import clock
from attneck.training.recipe_file import dump_recipe

SPLITS = {"train": "training images", "val": "held-out images", "ema": "held-out, averaged weights"}
OF_TRAINING = {"val": "scored images", "ema": "scored, averaged weights"}
"""What these are called in a run that is scored on images that it was trained on, or may have been."""
NAMES = {
    "loss": "loss",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "mAP": "mAP at IoU 0.5 (%)",
}
MATRIX = 1 << 20
"""Bytes of a picture of the run's folder that is put into the report, at most."""


def score_name(key: str) -> str:
    """Of a score without its split: "box_AP50" is box AP50 (%)."""
    return NAMES.get(key, key.replace("_", " ") + (" (%)" if "AP" in key else ""))


def figure(key: str, value: Any) -> str:
    """A score as it is read."""
    if not isinstance(value, int | float):
        return ""
    if "AP" in key and value < 0:
        return "nothing there"
    return f"{value:.4f}" if "loss" in key else f"{value:.2f}"


def recipe(story: Story) -> Html:
    """The recipe in words, and as the file has it."""
    reach = story.recipe.reach
    return tag(
        "section",
        tag("h2", "The recipe"),
        tag("p", "What it should reach: ", reach) if reach else None,
        terms(in_words(story.recipe, story.facts)),
        tag("details", tag("summary", "recipe.yaml, every field"), tag("pre", dump_recipe(story.recipe))),
        id="recipe",
    )


def scores(story: Story) -> Html:
    """Every score of the last record, and of the best one; beside what the papers print."""
    last, best = story.last, story.best
    if not last:
        return tag("section", tag("h2", "Scores"), tag("p", "No images were scored yet."), id="scores")
    splits = [split for split in SPLITS if any(key.startswith(f"{split}_") for key in last)]
    keys = dict.fromkeys(
        key.partition("_")[2] for key in last for split in splits if key.startswith(f"{split}_")
    )
    other = best is not None and best["step"] != last["step"]
    decides = (story.headline or "").partition("_")[0]
    names = SPLITS if story.scored_on == HELD_OUT else SPLITS | OF_TRAINING
    heads = ["after the last step", *(names[split] for split in splits)]
    heads += [f"best, step {best['step']:,}"] if best is not None and other else []
    rows = [
        [
            score_name(key),
            *(figure(key, last.get(f"{split}_{key}")) for split in splits),
            *([figure(key, best.get(f"{decides}_{key}"))] if best is not None and other else []),
        ]
        for key in keys
    ]
    scored = story.scored
    on = f" on {scored.images:,} {scored.scored_on}" if scored is not None else ""
    on = on or (f" on {story.scored_on}" if names is not SPLITS else "")
    return tag(
        "section",
        tag("h2", "Scores"),
        table(heads, rows, f"Step {last['step']:,}, epoch {last['epoch']:g}{on}"),
        _papers(story),
        id="scores",
    )


def _papers(story: Story) -> Html:
    rows = printed(story.recipe, story.last)
    if not rows:
        return tag("p", "The papers print no score of this network on this data.", class_="quiet")
    parts = []
    for row in rows:
        cells = [[label, paper, own, _apart(paper, own)] for label, paper, own in row.scores]
        otherwise = "This run is by the recipe that this project has for the row."
        if row.otherwise:
            otherwise = f"This run is not by the row's recipe: {'; '.join(row.otherwise)}."
        parts += [
            table(
                ["", "the paper", "this run", "difference"], cells, f"{row.where}, {row.label} ({row.title})"
            ),
            tag("p", otherwise, class_="quiet"),
        ]
    return join([tag("h3", "Beside the papers"), *parts])


def _apart(paper: str, own: str) -> str:
    try:
        return f"{float(own) - float(paper):+.2f}"
    except ValueError:
        return ""


def curves(drawings: list[tuple[str, str]], told: str) -> Html:
    """Drawings, in SVG, of the loss and the scores by epoch."""
    return tag(
        "section",
        tag("h2", "Curves"),
        tag(
            "div",
            *(
                tag("figure", tag("div", Html(svg), role="img", aria_label=f"{title} by epoch, a curve"))
                for title, svg in drawings
            ),
            class_="panels",
        ),
        tag("p", told, class_="quiet"),
        id="curves",
    )


def predictions(story: Story) -> Html | None:
    """The surest mistakes, other images, and what is confused; None where no end of the run has kept them."""
    scored = story.scored
    if scored is None:
        return None
    wrong = [one for one in scored.tiles if one.right is False]
    rest = [one for one in scored.tiles if one.right is not False]
    title = "Predictions" if scored.classifier else "What is there, and what was found"
    parts = [
        tag("h3", "The surest mistakes") if wrong else None,
        _tiles(wrong),
        tag("h3", "Right" if scored.classifier else "A few images") if rest else None,
        _tiles(rest, wide=not scored.classifier),
    ]
    return tag("section", tag("h2", title), *parts, id="predictions")


def _tiles(tiles: list[Shown], wide: bool = False) -> Html | None:
    if not tiles:
        return None
    return tag(
        "div",
        *(
            tag(
                "figure",
                tag("img", src=tile.picture, alt="; ".join(tile.lines), loading="lazy"),
                tag("figcaption", *(tag("span", line) for line in tile.lines)),
                class_={None: None, False: "wrong", True: "right"}[tile.right],
            )
            for tile in tiles
        ),
        class_="tiles wide" if wide else "tiles",
    )


def classes(story: Story) -> Html | None:
    """The classes one by one, the worst first, and what is confused most; None where nothing is kept."""
    scored = story.scored
    if scored is None:
        return None
    heads = [head.replace("_", " ") for head in scored.heads]
    rows = [[_cell(cell) for cell in row] for row in [*scored.worst, *scored.best]]
    caption = "Class by class, the worst first"
    caption += f": the worst and the best of {scored.classes:,}" if scored.best else ""
    parts: list[Html | None] = [table(heads, rows, caption) if rows else None]
    if scored.pairs:
        pairs = [[is_, taken, f"{times:,} of {total:,}"] for is_, taken, times, total in scored.pairs]
        more = f"Most confused: {scored.mistakes:,} mistakes, of {scored.kinds_of_mistakes:,} kinds"
        parts.insert(0, table(["is", "was taken for", "images"], pairs, more))
    elif scored.classifier:
        parts.insert(0, tag("p", "No image was taken for another class."))
    file = story.folder / PICTURES / ("confusion.png" if scored.classifier else "pr-curves.png")
    what = "Confusion matrix" if file.stem == "confusion" else "Precision by recall of each class"
    if file.is_file() and file.stat().st_size <= MATRIX:
        picture = tag("img", src=of_bytes(file.read_bytes()), alt=what, loading="lazy")
        parts.append(tag("details", tag("summary", what), tag("figure", picture, class_="paper")))
    title = "Confused classes" if scored.classifier else "Classes"
    return tag("section", tag("h2", title), *parts, id="classes")


def _cell(cell: Any) -> str:
    return "–" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def cost_rows(story: Story) -> list[tuple[str, str]]:
    """What the run cost, each with its name."""
    step = story.last.get("step", 0)
    peak = max((float(record.get("peak_gib", 0)) for record in story.history), default=0.0)
    cost = story.cost
    return [
        ("Parameters", f"{cost.params:,}" if cost else "not counted"),
        ("Multiply-adds for one image", f"{cost.madds:,}" if cost else "not counted"),
        ("Time, training and scoring", clock(step * story.pace) if step else ""),
        (
            "Training images a second, scoring included",
            f"{story.recipe.batch / story.pace:,.0f}" if story.pace else "",
        ),
        ("Most memory held", f"{peak:.2f} GiB" if peak else ""),
    ]


def cost(story: Story) -> Html:
    """Parameters, multiply-adds, time and memory."""
    return tag("section", tag("h2", "Cost"), terms(cost_rows(story)), id="cost")


ENVIRONMENT = {
    "gpu": "GPU",
    "float32_products": "Library of float32 products",
    "attention_passes": "Passes of attention and BAM on the CPU",
    "attention": "Attention asked for",
    "attention_backends": "Attention computed by",
    "torch_threads": "Threads",
}


def environment(story: Story) -> Html:
    """Versions, hardware, and where the run was started, once or more often."""
    around = {name: value for name, value in story.environment.items() if name not in ("starts", "command")}
    rows = [
        (ENVIRONMENT.get(name, name.replace("_", " ").capitalize()), "none" if value is None else str(value))
        for name, value in around.items()
    ]
    starts = story.environment.get("starts")
    starts = [one for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []
    begun = [
        [
            str(one.get("at", "")),
            str(one.get("step", "")),
            str(one.get("processes", "")),
            str(one.get("command", "")),
        ]
        for one in starts
    ]
    return tag(
        "section",
        tag("h2", "Environment"),
        terms(rows) if rows else tag("p", "environment.json is not there."),
        table(["started", "from step", "processes", "command"], begun, "Starts") if begun else None,
        id="environment",
    )
