"""A table of a benchmark to be read, as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str], width: int
) -> str:
    """Columns as wide as what they say, in `width` letters at most; those whose header is in `left` set left.

    The others are set right, as numbers are.
    """
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for heading in header:
        grid.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        grid.add_row(*row)
    console = Console(width=width)
    with console.capture() as captured:
        console.print(grid)
    return captured.get()
