"""What a run's last scoring said, as its folder keeps it for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from attneck.explain.inline import checked
from attneck.files import write_atomic

SCORED = "scored.json"

Cell = int | float | str | None


class Shown(BaseModel):
    """An image with what is said of it; `right` is None where nothing is right or wrong."""

    model_config = ConfigDict(frozen=True, strict=True)

    picture: Annotated[str, AfterValidator(checked)]
    lines: list[str]
    right: bool | None


class Scored(BaseModel):
    """An evaluation as a report shows it.

    Attributes:
        step: the optimiser step it is of.
        images: how many were scored, and `scored_on` which ones, in words.
        heads: the columns of the rows of `worst` and `best`, see `attneck.runs.class_table`.
        classes: how many the data has; of few all are in `worst`, and `best` is empty.
        pairs: what is, what it was taken for, how often, and of how many.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    step: int
    images: int
    scored_on: str
    heads: list[str]
    classes: int
    worst: list[list[Cell]]
    best: list[list[Cell]]
    pairs: list[tuple[str, str, int, int]]
    kinds_of_mistakes: int
    mistakes: int
    tiles: list[Shown]

    @property
    def classifier(self) -> bool:
        """Whether images were scored, and not objects in them."""
        return "accuracy" in self.heads


def write_scored(folder: Path, scored: Scored) -> None:
    """Into the run's folder.

    Raises:
        NotWritten: what was there stays as it was.
    """
    write_atomic(folder / SCORED, scored.model_dump_json().encode())


def read_scored(folder: Path) -> Scored | None:
    """Of the run's folder; None where no end of the run has written it.

    Raises:
        ValueError: a file that is damaged, or that another version wrote.
    """
    try:
        return Scored.model_validate_json((folder / SCORED).read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise ValueError(f"{SCORED} is damaged, or of another version") from error
