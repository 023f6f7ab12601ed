"""A network's counts: those that are kept with the package, or counted now. `make counts` writes the kept.

Run as a module it counts every network that is to be kept, and writes the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from attneck.files import write_atomic
from attneck.measure.kept import FILE, Counts, Key, kept
from attneck.models import catalog
from attneck.papers.tables import PAPERS, Network, load_paper


class Asked(NamedTuple):
    """The arguments of `create_model`."""

    model: str
    options: dict[str, Any]
    image_size: int
    num_classes: int


def counts_of(asked: Asked) -> Counts:
    """What a network costs.

    Raises:
        ValueError: what `create_model` or `count` does not take.
    """
    options = catalog.find(asked.model, asked.options).options
    return kept(options, asked.image_size, asked.num_classes) or counted(asked)


def counted(asked: Asked, *, stages: bool = False) -> Counts:
    """`counts_of`, by a count on the meta device, which takes torch."""
    import torch

    from attneck.measure import count

    model, options, size, classes = asked
    with torch.device("meta"):
        built = catalog.create_model(model, classes, size, **options)
    return count(built, size, stages=stages)


def of_paper(network: Network) -> Asked:
    """A network of the papers, as it is counted."""
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in network.options}
    if network.convention == "squeezenet":
        options |= {"stem_padding": 1, "pool": "features"}
    classes = catalog.find(network.model, options).num_classes if network.classes is None else network.classes
    return Asked(network.model, options, network.image_size, classes)


def to_be_kept() -> list[Asked]:
    """The papers' networks, and as published the classifiers, and the detectors that the papers train."""
    found: dict[Key, Asked] = {}
    for asked in _networks():
        options = catalog.find(asked.model, asked.options).options
        found.setdefault((options, asked.image_size, asked.num_classes), asked)
    return sorted(found.values(), key=lambda asked: (asked.model, str(asked.options), *asked[2:]))


def row_of(asked: Asked, counts: Counts) -> dict[str, Any]:
    """A row of the file."""
    figures = dataclasses.asdict(counts)
    del figures["stages"]
    return asked._asdict() | figures


def main() -> None:
    """Count all that is to be kept, and write it."""
    rows = [json.dumps(row_of(asked, counted(asked))) for asked in to_be_kept()]
    write_atomic(FILE, ("[\n" + ",\n".join(rows) + "\n]\n").encode())
    print(f"{len(rows)} networks counted: {FILE}")


def _networks() -> Iterator[Asked]:
    rows = [row for paper in map(load_paper, PAPERS) for table in paper.tables for row in table.rows]
    trained = {row.detector for row in rows}
    for name, entry in catalog.CATALOG.items():
        if entry.task == "classification" or name in trained:
            yield Asked(name, {}, entry.image_size, entry.num_classes)
    for row in rows:
        if row.network is not None and row.network.model in catalog.CATALOG:
            yield of_paper(row.network)


if __name__ == "__main__":
    main()
