"""attneck study: a table of runs, trained and reported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from attneck.checks import whole
from attneck.commands.arguments import Flag, parse
from attneck.commands.recipe_words import gathered
from attneck.commands.recipe_words import parse as recipe_of
from attneck.errors import UserError, say, suggestion, user_mistakes
from attneck.studies.study import Cell, Study, cells, load_study, shipped_studies
from attneck.training.recipe_file import OWN_DICTS, flat, load_recipe

USAGE = """usage: attneck study NAME [--list | --report] [--jobs N] [--seeds N] [--only CELL …] [--out FOLDER]
                     [--with REPORT …] [--baseline VARIANT] [--any.field VALUE …]

NAME is a study that comes with the program ({shipped}) or a YAML file:

  about: Does BAM help a narrow ResNet?
  recipe: cifar100-lab            # of attneck train, or a file
  fields: {{epochs: 30}}            # what every run changes in it
  variants:
    plain: {{model.name: cifar_resnet20}}
    bam: {{model.name: cifar_resnet20_bam}}
  baseline: plain                 # what the others are compared with
  seeds: [0, 1, 2]
  metric: top1                    # of the held-out images
  # problems: {{same: {{data.problem: same}}, …}}: every variant is trained on each
  # threshold: 90                 # the report says after how many images the score got there
  # sizes: [24, 32, 48]           # finished runs are scored on images of these sides too
  # rescored: {{kept: {{variant: bot, model.options.resample: keep}}}}: and there with other options
  # distance_images: 200          # how far their attention looks, averaged over so many held-out images
  # runs: relations               # in that study's folder: what both have is trained once
  # paper: {{bam: bam/2/ResNet50 + BAM}}: a variant's row in a paper's table

Every run is an ordinary attneck train in a folder of its own. The same command goes on where it was
stopped, in whatever way. --any.field changes a field of the recipe in every run; --model NAME is short for
--model.name NAME.
"""


@dataclass
class Arguments:
    """Train a study's runs, list them, or report on them."""

    list_: Annotated[Flag, tyro.conf.arg(name="list")] = False
    """Print the command of each run that isn't done, a line each, for xargs or a job array; train nothing."""
    report: Flag = False
    """Report on the runs that have ended, and train nothing."""
    jobs: int = 1
    """Runs at a time, each with one thread."""
    seeds: int | None = None
    """Seeds 0 … N-1; the study's own if not given."""
    only: tuple[str, ...] = ()
    """Only runs whose name (problem/variant/seed) has one of these in it."""
    out: Path | None = None
    """Where the runs lie; runs/study-NAME if not given."""
    with_: Annotated[tuple[Path, ...], tyro.conf.arg(name="with")] = ()
    """Reports (report.json) of the study from other machines, or of one that has some of its runs: a run in
    one of them counts as ended."""
    baseline: str | None = None
    """The variant that the report compares the others with; the study's own if not given."""
    to: Path | None = None
    """Where the report is written; report in the runs' folder if not given."""
    page: Path | None = None
    """A page of Markdown with the lines <!-- study NAME --> and <!-- end -->, which get the short tables."""


IDLE = {"--list": ("--report", "--jobs", "--baseline", "--to", "--page"), "--report": ("--jobs",)}
"""What would change nothing beside it."""
OWN = ("--list", "--report", "--jobs", "--seeds", "--only", "--out", "--with", "--baseline", "--to", "--page")
OF_A_RUN = ("resume", "accept_changes", "processes", "verbose")
"""Options of attneck train beside its recipe's fields, which a study refuses in words of their own."""
SHOWN = 5
"""Columns of the report's table that fit a screen."""


def main(words: list[str]) -> None:
    """Parse, refuse what can be refused at once, then list, report or train."""
    if not words or words[0].startswith("-") or {"-h", "--help"} & set(words):
        if words and words[0].startswith("-") and words[0] not in {"-h", "--help"}:
            raise UserError(f"the study comes first: attneck study NAME {' '.join(words)}")
        print(USAGE.format(shipped=", ".join(shipped_studies())))
        parse(Arguments, "attneck study NAME", ["--help"])  # prints the options, and ends
    name, (own, fields) = words[0], divided(words[1:])
    arguments = parse(Arguments, f"attneck study {name}", own)
    _check_idle({word.partition("=")[0] for word in own})
    study, stem = load_study(name), Path(name).stem
    if arguments.page is not None:
        from attneck.studies.page import read

        read(arguments.page, stem)  # refuses one without a place for the tables, before anything is trained
    study = _as_asked(study, arguments)
    if study.runs is not None and arguments.out is None:
        _check_runs(study.runs, Path(name))
    folder = arguments.out or Path("runs") / f"study-{study.runs or stem}"
    made = cells(study, folder, changes(study, fields))
    _check_models(study, made)
    chosen = [one for one in made if not arguments.only or any(word in one.name for word in arguments.only)]
    if not chosen:
        raise UserError(f"--only {' '.join(arguments.only)}: no run's name has it, such as {made[0].name}")
    if not arguments.report:
        left = _left(study, made, chosen, stem, arguments)
        if arguments.list_:
            print("".join(f"{cell.command()}\n" for cell in left if not cell.done), end="")
            return
        from attneck.studies.jobs import run_all

        run_all(left, arguments.jobs)
    to = arguments.to or folder / (f"report-{stem}" if study.runs else "report")
    if arguments.report and not (arguments.with_ or any(cell.done for cell in made)):
        raise UserError(
            f"no run of the study has ended, {made[0].folder} for one: train them first, by the same command "
            "without --report"
        )
    show(study, made, chosen, stem, to, arguments)


def _check_idle(given: set[str]) -> None:
    """UserError for a flag that would change nothing beside another one."""
    for mode, others in IDLE.items():
        if mode in given and (idle := next((flag for flag in others if flag in given), None)):
            raise UserError(f"{mode} and {idle} are given: leave one out")


def _as_asked(study: Study, arguments: Arguments) -> Study:
    """With the seeds and the baseline that were asked for; UserError for numbers that cannot be."""
    with user_mistakes():
        whole("--jobs", arguments.jobs, most=max(16, os.cpu_count() or 1))
        if arguments.seeds is not None:
            seeds = range(whole("--seeds", arguments.seeds, most=1000))
            study = study.model_copy(update={"seeds": tuple(seeds)})
        return study if arguments.baseline is None else study.against(arguments.baseline)


def _left(study: Study, made: list[Cell], chosen: list[Cell], name: str, arguments: Arguments) -> list[Cell]:
    """The chosen runs without those that have ended elsewhere; UserError for what could not be reported."""
    from attneck.studies import sizes
    from attneck.studies.report import printed_of
    from attneck.studies.results import check_data, check_metric

    printed_of(study)  # refuses what no paper has, before anything is trained
    check_metric(study, chosen)
    undone = [] if arguments.list_ else [cell for cell in chosen if not cell.done]
    check_data(study, made, undone)
    sizes.check(study, undone)
    ended = _ended_elsewhere(study, made, name, arguments.with_)
    return [one for one in chosen if (one.problem, one.variant, one.seed) not in ended]


def _check_runs(runs: str, file: Path) -> None:
    """UserError for what is almost a study's name: its runs would be trained twice."""
    known = [*shipped_studies(), *(path.stem for path in file.parent.glob("*.y*ml"))]
    near = suggestion(runs, known)
    if runs not in known and near and not Path("runs", f"study-{runs}").is_dir():
        raise UserError(f"runs is {runs!r}, which is no study's name{near}; if not, give --out FOLDER")


def _check_models(study: Study, made: list[Cell]) -> None:
    """UserError for a variant whose network the catalog does not have, or not with its options.

    Also with those that it is to be scored with.
    """
    from attneck.models import catalog
    from attneck.studies.sizes import ways_of
    from attneck.training.recipe import TIMM

    for cell in made:
        for way, fields in ways_of(study, cell.variant).items():
            try:
                model = cell.rescored(fields).model
                if not model.name.startswith(TIMM):
                    catalog.find(model.name, dict(model.options))
            except ValueError as error:
                rescored = f", rescored as {way}" if fields else ""
                raise UserError(f"{cell.name}{rescored}: {error}") from None


def _ended_elsewhere(
    study: Study, made: list[Cell], name: str, reports: tuple[Path, ...]
) -> set[tuple[str, str, int]]:
    """Problem, variant and seed of what has ended here or there; other studies' reports are refused."""
    if not reports:
        return set()
    from attneck.studies import elsewhere, report
    from attneck.studies.results import collect

    results = report.Results(study, name, collect(study, made), 0)
    for file in reports:
        results = elsewhere.add(results, file)
    return {(row.problem, row.variant, seed) for row in results.rows for seed in row.scores}


def divided(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of `Arguments`, and those that change fields of the recipe."""
    own: list[str] = []
    fields: list[str] = []
    current = own
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            current = own if flag in OWN else fields
            word = f"--model.name{equals}{value}" if flag == "--model" else word
        current.append(word)
    return own, fields


def changes(study: Study, words: list[str]) -> dict[str, Any]:
    """The fields that `words` give a value, by their dotted names, and those that change with these.

    An option of the model that is taken back is None.
    """
    _check_flags(study, words)
    plain, given = (recipe_of(study.recipe, some, study.fields) for some in ([], words))
    if given.resume or given.accept_changes or given.processes != 1:
        raise UserError("--resume, --accept-changes and --processes are a run's: a study goes on by itself")
    before, after = (flat(one.recipe) for one in (plain, given))
    # Also a value that the recipe has already: the study may have another one.
    named = _named(words, {**before, **after})
    found = {field: value for field, value in after.items() if before.get(field) != value or field in named}
    if "seed" in found:
        raise UserError("--seed is a run's: give the study --seeds N, for seeds 0 … N-1")
    return found | dict.fromkeys(named - after.keys())


def _check_flags(study: Study, words: list[str]) -> None:
    """UserError for what is nearest to an option of a study, and would be told as one of its recipe's."""
    fields = [f"--{name.replace('_', '-')}" for name in (*flat(load_recipe(study.recipe)), *OF_A_RUN)]
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and "." not in flag and flag not in fields:
            near = suggestion(flag, [*OWN, *fields])
            if any(repr(own) in near for own in OWN):
                raise UserError(f"unknown option {flag}{near} (attneck study --help)")


def _named(words: list[str], known: Mapping[str, Any]) -> set[str]:
    """The fields of a recipe that `words` name, and the options; `known`: those that there are."""
    found: set[str] = set()
    flag, after = "", gathered(words)
    for word, value in zip(after, [*after[1:], ""], strict=False):
        if word.startswith("--"):
            flag = word[2:].partition("=")[0].replace("-", "_")
            *path, last = flag.split(".")
            positive = ".".join([*path, last.removeprefix("no_")])
            found.update({flag, positive} & known.keys())
        elif flag in OWN_DICTS and (f"{flag}.{word}" in known or value == "None"):
            found.add(f"{flag}.{word}")
    return found


def show(
    study: Study, made: list[Cell], chosen: list[Cell], name: str, to: Path, arguments: Arguments
) -> None:
    """Find out what is missing of the chosen runs that have ended; report on all of `made` that have.

    The report goes into the folder `to`, and the first columns of its table are printed.
    """
    from rich.console import Console
    from rich.table import Table

    from attneck.studies import distance, elsewhere, report, sizes
    from attneck.studies.page import fill
    from attneck.studies.results import check_data, collect

    undone = sum(not cell.done for cell in made)
    rows = collect(study, made)  # refuses runs of another recipe
    lacking = [cell for cell in chosen if sizes.lacking(study, cell) or distance.lacking(study, cell)]
    try:
        check_data(study, made, lacking)  # what is found of other images now would stay for good
    except UserError as error:
        say(f"not scored at other sizes, and no distances of attention: {error}")
    else:
        sizes.find(study, chosen, say)
        distance.find(study, chosen, say)
    found = sizes.collect(study, made), distance.collect(study, made)
    results = report.Results(study, name, rows, undone, *found)
    for file in arguments.with_:
        results = elsewhere.add(results, file)
    undone = results.undone
    written = report.write(results, to)
    if arguments.page is not None:
        fill(arguments.page, results, to)
    head, body = report.table(study, results.rows)
    grid = Table(*head[:SHOWN], box=None, pad_edge=False)
    for row in body:
        grid.add_row(*row[:SHOWN])
    Console().print(grid)
    if undone:
        say(f"{undone} of {len(made)} runs have not ended yet")
    print(f"report  {written[0]}  (and {', '.join(file.name for file in written[1:])})")
