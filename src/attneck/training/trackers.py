"""Experiment trackers that are told a run's records: Weights & Biases, MLflow and trackio.

Each is imported only where the recipe names it. What each was told stands in the run's `trackers.json`, with
the tracker's own id of the run: a run that goes on joins it, and sends what it lacks.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from attneck.errors import UserError, one_line, say
from attneck.files import read_json, write_json
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import flat

FILE = "trackers.json"
PROJECT = "attneck"
"""Where neither the recipe nor the tracker's environment variables say another one."""
LONGEST_PARAMETER = 250
"""Characters; the least that one of MLflow's stores takes."""


class Tracker(Protocol):
    """A run of a tracker's, begun or joined; `id` is the tracker's for it."""

    id: str

    def __init__(self, folder: Path, recipe: Recipe, known: str | None) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def end(self, failed: bool) -> None: ...


class Wandb:
    """https://docs.wandb.ai/ref/python/init/"""

    def __init__(self, folder: Path, recipe: Recipe, known: str | None) -> None:
        self.id = known or secrets.token_hex(4)
        self.run = import_module("wandb").init(
            project=recipe.log.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            name=folder.resolve().name,
            id=self.id,
            resume="allow",
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
            allow_val_change=True,  # of fields that may change on resume
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def end(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """https://mlflow.org/docs/latest/python_api/mlflow.html"""

    def __init__(self, folder: Path, recipe: Recipe, known: str | None) -> None:
        self.mlflow = import_module("mlflow")
        if known is not None:
            self.id: str = self.mlflow.start_run(run_id=known).info.run_id
            return
        said = {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys()
        if recipe.log.project is not None or not said:
            self.mlflow.set_experiment(recipe.log.project or PROJECT)
        self.id = self.mlflow.start_run(run_name=folder.resolve().name).info.run_id
        fields = [(name, str(value)[:LONGEST_PARAMETER]) for name, value in flat(recipe).items()]
        for first in range(0, len(fields), 100):  # as many as it takes at once
            self.mlflow.log_params(dict(fields[first : first + 100]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def end(self, failed: bool) -> None:
        self.mlflow.end_run(status="FAILED" if failed else "FINISHED")


class Trackio:
    """https://huggingface.co/docs/trackio; its runs are joined by their name."""

    def __init__(self, folder: Path, recipe: Recipe, known: str | None) -> None:
        self.id = known or f"{folder.resolve().name}-{secrets.token_hex(4)}"
        self.run = import_module("trackio").init(
            project=recipe.log.project or PROJECT,
            name=self.id,
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def end(self, failed: bool) -> None:
        self.run.finish()


KINDS: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def require(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed; none is imported.

    Raises:
        UserError: with the command that installs it.
    """
    for name in recipe.log.trackers:
        # A folder of that name, as wandb itself makes where it logs, is no package.
        if name not in sys.modules and getattr(find_spec(name), "origin", None) is None:
            raise UserError(f"log.trackers: {name} is not installed: pip install {name}, or leave it out")


class Trackers:
    """Those that a recipe names, for the length of a run; none on any process but the first (`folder` None).

    One that fails while the run trains is left alone, with a line on stderr; a resume sends what it lacks.

    Args:
        resumed: join the runs that the folder knows. Otherwise new ones are begun.

    Raises:
        UserError: one that cannot be begun, where the run itself begins.
    """

    def __init__(self, folder: Path | None, recipe: Recipe, *, resumed: bool) -> None:
        self.folder = folder
        self.running: dict[str, Tracker] = {}
        self.known: dict[str, dict[str, Any]] = {}
        if folder is None or not recipe.log.trackers:
            return
        self.known = _read(folder) if resumed else {}
        for name in dict.fromkeys(recipe.log.trackers):
            before = self.known.get(name, {})
            try:
                self.running[name] = tracker = KINDS[name](folder, recipe, before.get("id"))
            except Exception as error:
                if not resumed:
                    self._end(failed=True)
                    raise UserError(
                        f"log.trackers: {name} could not be started ({type(error).__name__}: "
                        f"{one_line(error, 120)}): put that right, or leave it out"
                    ) from error
                _gone(name, error)
            else:
                self.known[name] = {"id": tracker.id, "sent": before.get("sent", 0)}

    def send(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Send what each was not told yet, under the tags that TensorBoard has."""
        for name, tracker in list(self.running.items()):
            try:
                for record in history:
                    if record["step"] > self.known[name]["sent"]:
                        scores = {key: value for key, value in record.items() if key not in {"epoch", "step"}}
                        tracker.log(
                            record["step"], {key.replace("_", "/", 1): value for key, value in scores.items()}
                        )
                        self.known[name]["sent"] = record["step"]
            except Exception as error:
                _gone(name, error)
                del self.running[name]
        self._write()

    def _end(self, *, failed: bool) -> None:
        for name, tracker in self.running.items():
            try:
                tracker.end(failed)
            except Exception as error:
                _gone(name, error)

    def _write(self) -> None:
        if self.folder is not None and self.known:
            write_json(self.folder / FILE, self.known)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(failed=kind is not None)


def _gone(name: str, error: Exception) -> None:
    say(
        f"{name} takes no more ({type(error).__name__}: {one_line(error, 120)}); the run goes on "
        "without it, and a resume sends what it lacks"
    )


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """What each was told; empty where the file is missing or not what is written here."""
    try:
        found = read_json(folder / FILE) or {}
        return {
            name: {"id": str(found[name]["id"]), "sent": int(found[name]["sent"])}
            for name in KINDS
            if name in found
        }
    except (ValueError, TypeError, KeyError):
        return {}
