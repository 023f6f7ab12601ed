"""A report as one HTML document: of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from attneck.errors import UserError
from attneck.explain.plain import short
from attneck.files import told_apart
from attneck.runs.report import sections
from attneck.runs.report.attention import attention
from attneck.runs.report.html import Html, join, table, tag
from attneck.runs.report.story import Story
from attneck.runs.scored_on import HELD_OUT
from attneck.training.recipe_file import FREE_ON_RESUME, flat

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing is fetched, and no script runs, whatever is in a class's name."""

NO_DIFFERENCE = FREE_ON_RESUME - {"model.weights", "data.root", "patience"}
"""Fields in which runs that train the same may differ."""


def document(stories: Sequence[Story], out: Path) -> str:
    """The whole page.

    Raises:
        UserError: runs that are scored by different scores.
    """
    if len(stories) == 1:
        (story,) = stories
        name, parts = story.name, _one(story)
        top = [tag("p", tag("b", story.recipe.model.name), f" on {story.recipe.data.name}; {story.state}.")]
        top += [_headlines(story), _next(story)]
    else:
        name = f"{len(stories)} runs side by side"
        parts, top = (
            _several(stories),
            [tag("p", ", ".join(told_apart([story.folder for story in stories])), ".")],
        )
    title = f"{name} – attneck"
    style = files("attneck.runs.report").joinpath("page.css").read_text(encoding="utf-8")
    there = [part for part in parts if part is not None]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", tag("header", tag("h1", name), *top), tag("main", *there), _footer(stories, out))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _one(story: Story) -> list[Html | None]:
    return [
        sections.scores(story),
        _curves([story]),
        attention(story.snapshots, story.scored_on),
        sections.predictions(story),
        sections.classes(story),
        sections.recipe(story),
        sections.cost(story),
        sections.environment(story),
        _lacks([story]),
    ]


def _several(stories: Sequence[Story]) -> list[Html | None]:
    names = told_apart([story.folder for story in stories])
    headlines = list(dict.fromkeys(story.headline for story in stories if story.headline))
    if len({key.partition("_")[2] for key in headlines}) > 1:
        raise UserError(
            f"these runs are scored by {' and '.join(sorted(headlines))}: make the report of each kind alone"
        )
    costs = [dict(sections.cost_rows(story)) for story in stories]
    keys = list(
        dict.fromkeys(key for story in stories for key in story.last if key.startswith(("val_", "ema_")))
    )
    scores = {
        f"{sections.score_name(key.partition('_')[2])}{', averaged weights' * key.startswith('ema_')}": [
            sections.figure(key, story.last.get(key)) for story in stories
        ]
        for key in keys
    }
    mixed = len(headlines) > 1
    best = [
        f"{sections.figure(story.headline, story.best[story.headline])}, step {story.best['step']:,}"
        f"{', averaged weights' * (mixed and story.headline.startswith('ema_'))}"
        if story.headline and story.best
        else ""
        for story in stories
    ]
    lines = [["state", *(story.state for story in stories)]]
    lines += [[name, *values] for name, values in scores.items()]
    lines += [[f"best {sections.score_name(headlines[0].partition('_')[2])}", *best]] if headlines else []
    lines += [[name, *(cost[name] for cost in costs)] for name in costs[0]]
    told = [
        tag(
            "section",
            tag("h2", "Scores and costs"),
            table(["", *names], lines, "After each run's last step"),
            id="scores",
        ),
        _curves(stories),
        _differences(stories, names),
    ]
    for story, name in zip(stories, names, strict=True):
        parts = [
            attention(story.snapshots, story.scored_on),
            sections.predictions(story),
            sections.classes(story),
        ]
        there = [part for part in parts if part is not None]
        if there:
            told.append(tag("details", tag("summary", name), *there, class_="run"))
    return [*told, _lacks(stories)]


def _differences(stories: Sequence[Story], names: list[str]) -> Html:
    recipes = [flat(story.recipe) for story in stories]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe if field not in NO_DIFFERENCE)
    rows = []
    for field in fields:
        values = ["" if recipe.get(field) is None else str(recipe[field]) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append([field, *values])
    said = (
        table(["field", *names], rows, "Fields that are not the same")
        if rows
        else tag("p", "The recipes are the same.")
    )
    return tag("section", tag("h2", "The recipes' differences"), said, id="differences")


def _curves(stories: Sequence[Story]) -> Html | None:
    """A line a run; None before the first record."""
    from attneck.explain.figures import drawings

    with_records = [story.folder for story in stories if story.history]
    held_out = all(story.scored_on == HELD_OUT for story in stories)
    return sections.curves(*drawings(with_records, held_out=held_out)) if with_records else None


def _headlines(story: Story) -> Html:
    """The few figures that a reader looks for first."""
    key, best = story.headline, story.best
    figures = []
    if key is not None:
        figures.append((sections.score_name(key.partition("_")[2]), sections.figure(key, story.last[key])))
        if best is not None and best["step"] != story.last["step"]:
            figures.append((f"best, step {best['step']:,}", sections.figure(key, best[key])))
    costs = dict(sections.cost_rows(story))
    if story.cost is not None:
        figures += [("parameters", short(story.cost.params)), ("multiply-adds", short(story.cost.madds))]
    figures += [("time", costs["Time, training and scoring"]), ("memory", costs["Most memory held"])]
    return tag(
        "ul", *(tag("li", tag("b", value), " ", name) for name, value in figures if value), class_="figures"
    )


def _next(story: Story) -> Html:
    """Commands to go on with."""
    import shlex

    run = shlex.quote(str(story.folder))
    commands = [f"attneck serve {run}", f"attneck eval {run}"]
    if story.summary is None:
        commands.insert(0, f"attneck train {run} --resume")
    return tag("p", "Go on with ", join((tag("code", one) for one in commands), " or "), ".", class_="quiet")


def _lacks(stories: Sequence[Story]) -> Html | None:
    """What is not in the report, and why."""
    names = told_apart([story.folder for story in stories])
    said = [
        f"{name}: {line}" if len(stories) > 1 else line
        for name, story in zip(names, stories, strict=True)
        for line in _missing(story)
    ]
    if not said:
        return None
    return tag(
        "section", tag("h2", "What is not here"), tag("ul", *(tag("li", line) for line in said)), id="lacks"
    )


def _missing(story: Story) -> list[str]:
    said = list(story.lacks)
    if story.scored is None:
        said.append("predictions and confused classes: they are kept at a run's end (not with --no-pictures)")
    if not story.snapshots:
        said.append(
            "images as training went on: they are kept while a run trains (not with --no-pictures, nor of a "
            "detector without BAM or MHSA)"
        )
    return said


def _footer(stories: Sequence[Story], out: Path) -> Html:
    import shlex

    from attneck import __version__

    own = len(stories) == 1 and out.parent == stories[0].folder
    where = [] if own else ["--out", str(out)]
    words = shlex.join(["attneck", "report", *(str(story.folder) for story in stories), *where])
    return tag("footer", tag("p", f"attneck {__version__}. ", tag("code", words), " makes this page again."))
