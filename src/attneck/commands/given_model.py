"""What a command's MODEL-OR-RUN stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attneck.errors import UserError, suggestion
from attneck.models import catalog
from attneck.training.recipe_file import is_run


def kind_of(model: str) -> Literal["run", "saved", "name"]:
    """What the word stands for.

    Raises:
        UserError: nothing, or a run that has saved nothing yet.
    """
    path = Path(model)
    if is_run(path):
        if not any(path.glob("checkpoints/step-*.pt")):
            raise UserError(f"{model}: no checkpoint there yet (attneck train {model} makes them)")
        return "run"
    if (path / "config.json").is_file() or (path.suffix == ".safetensors" and path.is_file()):
        return "saved"
    names = list(catalog.CATALOG)
    if model in names:
        return "name"
    if path.exists():
        raise UserError(
            f"{model} is no run (recipe.yaml) and no saved model (config.json, or a .safetensors file)"
        )
    raise UserError(
        f"no model or run is called {model!r}{suggestion(model, names)} (attneck list: the models)"
    )
