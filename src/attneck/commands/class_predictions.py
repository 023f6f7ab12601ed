"""What a classifier finds in images: lines, a table, and contact sheets with the surest mistakes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attneck.tasks.task import Found, Sample

TABLE, SHEET = "predictions.csv", "contact-sheet"


class ClassPredictions:
    """Gathers images one by one, each small, and no more of them than the contact sheets show.

    Args:
        titles: of the runs; the first one's mistakes order the sheets.
        top_k: classes of an image.
    """

    def __init__(self, titles: list[str], top_k: int) -> None:
        from attneck.explain.contact_sheet import Best

        self.titles, self.top_k = titles, top_k
        self.rows: list[list[object]] = []
        self.best = Best()
        self.images = self.known = self.right = self.silent = 0

    def add(self, sample: Sample, found: list[Found]) -> str:
        """An image and what each run says of it; the line that tells it."""
        from attneck.explain.contact_sheet import Tile, small

        label = label_of(sample)
        for title, rows in zip(self.titles, found, strict=True):
            cells = [cell for row in rows for cell in (row["category"], f"{row['score']:.6f}")]
            self.rows.append([sample.file, title, label or "", *cells])
        first = found[0][0] if found[0] else None
        right = None if label is None else first is not None and first["category"] == label
        self.images += 1
        self.known += right is not None
        self.right += bool(right)
        self.silent += label is not None and first is None
        score = first["score"] if first else 0.0
        key = (1.0, 0.0) if right is None else (2.0, score) if right else (0.0, -score)
        if self.best.wants(key):
            lines = [f"{rows[0]['category']} {rows[0]['score']:.2f}" if rows else "–" for rows in found]
            lines += [f"is {label}"] * (right is False)
            self.best.add(key, Tile(small(sample.image), tuple(lines), right))
        told = " | ".join(
            ", ".join(f"{row['category']} {row['score']:.2f}" for row in rows) for rows in found
        )
        return told + (f"  (it is {label})" if label is not None else "")

    def write(self, folder: Path) -> list[Path]:
        """The table and the sheets, into a folder where there are none.

        Raises OSError where they cannot be written.
        """
        from attneck.explain.contact_sheet import pages
        from attneck.files import write_atomic, write_csv

        heads = [f"{what}_{number}" for number in range(1, self.top_k + 1) for what in ("class", "score")]
        write_csv(folder / TABLE, [["file", "model", "label", *heads], *self.rows])
        files = [folder / TABLE]
        tiles = self.best.tiles()
        shown = (
            f"{self.images:,} images"
            if len(tiles) == self.images
            else f"{len(tiles)} of {self.images:,} images"
        )
        title = f"{' | '.join(self.titles)}: {shown}{', the surest mistakes first' if self.known else ''}"
        for number, page in enumerate(pages(tiles, title), 1):
            files.append(folder / f"{SHEET}{f'-{number}' * (number > 1)}.png")
            write_atomic(files[-1], page)
        return files

    def summary(self) -> str:
        """How many were right of those whose class is known; "" where none is."""
        if not self.known:
            return ""
        share = 100 * self.right / self.known
        silent = f", {self.silent:,} below --min-score" * bool(self.silent)
        return f"{self.right:,} of {self.known:,} with a known class are right ({share:.2f} %){silent}"


def label_of(sample: Sample) -> str | None:
    """The class of an image, where it is known."""
    return str(sample.truth[0]["category"]) if sample.truth else None
