"""attneck papers: every figure of the two papers beside what is computed and measured here."""

from __future__ import annotations

import json
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attneck.commands.arguments import Flag, Json, call
from attneck.commands.counted import counts_of, of_paper
from attneck.commands.measured import FOLDERS, Results
from attneck.commands.paper_figures import (
    ABLATION,
    PAPER_OF,
    draw_ablation,
    draw_pareto,
    draw_table,
    file_of,
    point_lines,
    point_of,
)
from attneck.errors import UserError
from attneck.models import catalog
from attneck.papers.layout import (
    Checked,
    Section,
    Sheet,
    document,
    markdown,
    sheet,
    source_sentence,
    stacked,
    tally,
    tally_sentence,
)
from attneck.papers.step_times import read_step_times
from attneck.papers.tables import (
    PAPERS,
    Cost,
    Network,
    Paper,
    ParamsConvention,
    Row,
    Table,
    Trainer,
    compare,
    load_paper,
    no_table,
    train_command,
)
from attneck.runs.printed import architecture, recipe_of
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import load_recipe, shipped_recipes


def show(
    paper: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    table: str | None = None,
    results: tuple[Path, ...] = (),
    figure: Literal["7", "8", "9", "ablation"] | None = None,
    save: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None,
    markdown_: Annotated[Flag, tyro.conf.arg(name="markdown")] = False,
    json_: Json = False,
) -> None:
    """Every figure that the papers print, beside what is computed and measured here; not BAM's supplement.

    Args:
        paper: botnet or bam; both if not given.
        table: one table, by its number in the paper, such as 14 or 3a.
        results: folders with the runs to show beside; results and runs, where there are such, if not given.
        figure: draw BoTNet's Figure 7, 8 or 9, accuracy against cost, or BAM's Table 1 as bars (ablation).
        save: the picture's file, .svg, .pdf or .png; without --figure, draw the one --table into it.
        markdown_: print the page that is docs/papers.md.
        json_: print one JSON document and nothing else.
    """
    _check_modes(paper, table, figure, markdown_, json_)
    chosen = choose(paper, table)
    if save is not None and figure is None:
        file_of("", save)
        if table is None or len(chosen) > 1 or markdown_ or json_:
            raise UserError(
                f"--save {save} is for one table or figure: give --figure, or the paper and its --table, "
                "such as attneck papers botnet --table 14 --save table-14.svg, without --markdown and --json"
            )
    for folder in results:
        if not folder.is_dir():
            raise UserError(f"--results {folder}: there is no such folder (attneck train makes runs)")
    measured = Results(list(results) or [folder for folder in FOLDERS if folder.is_dir()])
    if figure is not None:
        _draw(figure, measured, file_of(f"{PAPER_OF[figure]}-figure-{figure}", save), json_)
        return
    sections = compare_all(chosen, measured)
    source = source_sentence([folder.as_posix() for folder in measured.folders], len(measured.runs), sections)
    if save is not None:
        draw_table(sections[0], source, save)
        print(f"wrote {save}")
    elif json_:
        print(json.dumps(document(sections, source), ensure_ascii=False))
    elif markdown_:
        words = ["attneck papers", paper, table and f"--table {table}"]
        words += [f"--results {shlex.join(map(str, results))}"] if results else []
        print(markdown(sections, " ".join([*filter(None, words), "--markdown"]), source), end="")
    else:
        render(sections, source)


def _check_modes(
    paper: str | None, table: str | None, figure: str | None, markdown_: bool, json_: bool
) -> None:
    """UserError for options of which one would change nothing."""
    if figure is not None and (paper not in (None, PAPER_OF[figure]) or table is not None or markdown_):
        raise UserError(
            f"--figure {figure} is the {PAPER_OF[figure]} paper's, a picture of whole tables: leave "
            f"{'--table' if table is not None else '--markdown' if markdown_ else repr(paper)} out"
        )
    if markdown_ and json_:
        raise UserError("--markdown and --json are given: leave one out")


def _draw(figure: str, measured: Results, path: Path, json_: bool) -> None:
    """Draw a figure into `path`, and print what is in it."""
    if figure == "ablation":
        sections = [part for number in ABLATION for part in compare_all(choose("bam", number), measured)]
        draw_ablation(sections, path)
        source = source_sentence([one.as_posix() for one in measured.folders], len(measured.runs), sections)
        print(json.dumps({"picture": str(path)} | document(sections, source)) if json_ else f"wrote {path}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    times = read_step_times(measured.folders)

    def madds(network: Network) -> int | None:
        known = cost(network)
        return known.madds if known else None

    found = draw_pareto(figure, madds, times, path)
    if json_:
        points = [point_of(point, times) for point in found]
        print(json.dumps({"picture": str(path), "figure": figure, "points": points}, ensure_ascii=False))
        return
    header, *rows = point_lines(found, times)
    grid = RichTable(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(file=sys.stdout, width=1000)).print(grid)
    print(f"wrote {path}")


def choose(paper: str | None, table: str | None) -> list[tuple[Paper, Table]]:
    """The tables that are asked for, with their papers.

    Raises:
        UserError: no such paper or table.
    """
    papers = [load_paper(name) for name in ([paper] if paper else PAPERS)]
    found = [(one, entry) for one in papers for entry in one.tables if table in (None, entry.id)]
    if table is not None and not found:
        if paper:
            papers[0].table(table)
        raise no_table(table, sorted({entry.id for one in papers for entry in one.tables}), "either paper")
    return found


def compare_all(chosen: list[tuple[Paper, Table]], measured: Results) -> list[Section]:
    """Look up every row of the tables, and count what is not kept."""
    recipes = _recipes(chosen)
    sections = []
    for paper, table in chosen:
        rows = []
        for row in table.rows:
            command = _train(row, recipes)
            recipe = recipe_of(row, recipes) if command and measured.runs else None
            same = measured.of(table, row, recipe)
            rows.append(Checked(row, compare(table, row, cost), same, command))
        sections.append(Section(paper, table, rows))
    return sections


@cache
def cost(network: Network) -> Cost | None:
    """What a network of the catalog costs; None where the catalog has no such name."""
    if network.model not in catalog.CATALOG:
        return None

    counts = counts_of(of_paper(network))
    params: dict[ParamsConvention, int] = {
        "all": counts.params,
        "paper": counts.params_paper,
        "weights": counts.params_weights,
    }
    if network.parameters_only:
        return Cost(params)
    biases = counts.bias_adds if network.convention == "squeezenet" else 0
    return Cost(params, counts.madds + biases, counts.madds_no_classifier + biases)


def render(sections: list[Section], source: str) -> None:
    """Print the tables: as wide as they are, or row by row on a terminal that is narrower."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=1000)
    for section in sections:
        laid: Sheet = sheet(section)
        grid = RichTable(title=laid.title, caption=laid.setup, box=box.SIMPLE_HEAD, title_justify="left")
        grid.caption_justify = "left"
        for name, *cells in zip(laid.header, *laid.rows, strict=True):
            # Said here, it isn't found out by laying out every cell, which takes as long as all the rest.
            grid.add_column(name, width=max(map(cell_len, (name, *cells))))
        for cells in laid.rows:
            styles = {"same": "green", "differs": "red"}
            grid.add_row(*(Text(cell, styles.get(cell.split(",")[0].split(" ")[0], "")) for cell in cells))
        if console.measure(grid, options=console.options.update(width=1000)).maximum > console.width:
            print(stacked(laid, console.width))
        else:
            console.print(grid)
        for mark, text in enumerate(laid.footnotes, start=1):
            console.print(Text(f"  {mark}. {text}"))
        for label, command in laid.commands:
            console.print(Text(f"  {label}: {command}"), soft_wrap=True)  # to be copied
        console.print()
    if tally(sections)["rows"]:
        console.print(Text(tally_sentence(sections)))
    console.print(Text(source))


def _recipes(chosen: list[tuple[Paper, Table]]) -> dict[str, Recipe]:
    """The shipped recipes that the tables name."""
    named = {_recipe(row) for _, table in chosen for row in table.rows}
    return {name: load_recipe(name) for name in shipped_recipes() if name in named}


def _train(row: Row, recipes: dict[str, Recipe]) -> str | None:
    """`train_command`, where the recipe's own options leave the network as it is."""
    name = _recipe(row)
    if name not in recipes:
        return None
    trainer = Trainer(dict(recipes[name].model.options), recipes[name].data.image_size)
    try:
        same = architecture(row.trained, trainer.options | row.trained_options) == architecture(
            row.trained, row.trained_options
        )
    except ValueError:  # what the catalog does not have
        return None
    return train_command(row, {name: trainer}) if same else None


def _recipe(row: Row) -> str:
    """The name of the recipe that trains the row, or nothing."""
    return row.recipe.partition(" ")[0]


def main(words: list[str]) -> None:
    """Parse and run."""
    call(show, "attneck papers", words)
