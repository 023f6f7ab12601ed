"""Step times of a table's networks, as `attneck bench step --table` wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attneck.errors import UserError
from attneck.papers.tables import Row
from attneck.processor import ran_on

KIND = "step times"
"""What such a document says that it is."""


@dataclass(frozen=True)
class StepTimes:
    """A document of them: forward and backward, in training, on one device."""

    path: str
    device: str
    dtype: str
    ms_an_image: Mapping[str, float]
    """By `key`."""
    rounds: int
    """How often each was timed, at least."""

    def of(self, row: Row) -> float | None:
        """Milliseconds an image of a row's network."""
        return self.ms_an_image.get(key(row.model, row.options, row.image_size))


def key(model: str, options: Mapping[str, Any], image_size: int | None) -> str:
    """What a network is known by in these documents."""
    return json.dumps([model, options, image_size], sort_keys=True)


def read_step_times(folders: Iterable[Path]) -> list[StepTimes]:
    """The documents of step times in some folders, however deep, sorted by their paths.

    Raises:
        UserError: one that `attneck bench` did not write so.
    """
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            text = path.read_text(errors="replace")
            if f'"{KIND}"' not in text[:200]:  # of the many others none is parsed
                continue
            try:
                document = json.loads(text)
                environment = document["environment"]
                rows = {
                    key(row["model"], row["options"], row["image_size"]): row["ms"] / row["batch"]
                    for row in document["rows"]
                    if row["ms"] is not None
                }
                rounds = min((len(row["samples_ms"]) for row in document["rows"] if row["ms"]), default=0)
                device = environment["gpu"] or ran_on(environment)
                found.append(StepTimes(path.as_posix(), device, document["dtype"], rows, rounds))
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise UserError(
                    f"{path} is no document of attneck bench step --table ({type(error).__name__}: {error}); "
                    "measure it anew or move it"
                ) from None
    return found
