"""What a command's word for a model stands for: a run, a saved model or a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attneck.commands.arguments import Checkpoint
from attneck.errors import UserError, suggestion, user_mistakes
from attneck.models import catalog
from attneck.training.checkpoint_files import named
from attneck.training.recipe_file import is_run

if TYPE_CHECKING:
    from attneck.runs.run import Run
    from attneck.serve.network import Viewer

Kind = Literal["run", "saved", "name"]


def kind_of(model: str) -> Kind:
    """What the word stands for.

    Raises:
        UserError: nothing, or a run that has saved nothing yet.
    """
    path = Path(model)
    if is_run(path):
        if not named(path / "checkpoints"):
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


def only_of_runs(flag: str, model: str, kind: Kind) -> None:
    """UserError for a flag that was given, and a model that is no run."""
    if kind != "run":
        raise UserError(f"{flag} is about runs, and {model} is none: leave it out")


def load(
    kind: Kind, model: str, image_size: int | None, raw: bool, checkpoint: Checkpoint
) -> tuple[Run | None, Any, int | None]:
    """The run, if it is one; the network; and the image side of its graph, None for the network's own."""
    if kind == "run":
        from attneck.runs.run import Run

        run = Run(model, checkpoint)
        size = image_size or run.facts["image_size"]
        return run, run.model(size, average=not raw), size
    if kind == "saved":
        from attneck import hub

        return None, hub.load(model, image_size=image_size), image_size
    from attneck.models import create_model

    return None, create_model(model, image_size=image_size), image_size


def viewer(model: str, image_size: int | None = None, checkpoint: Checkpoint = "newest") -> Viewer:
    """The model that a word stands for, ready for photos; `checkpoint` is of a run.

    Raises:
        UserError: no such model, or one whose images are not square or not of three colours.
    """
    kind = kind_of(model)
    from attneck.serve.network import Viewer

    with user_mistakes():
        run, network, _ = load(kind, model, image_size, False, checkpoint)
    network.eval()
    title = model
    if run is not None:
        made = run.recipe.model
        surgery = "" if made.surgery == "none" else f" after {made.surgery}"
        title = f"{made.name}{surgery}, step {run.step:,}"
    known = dict(getattr(network, "pretrained_cfg", None) or {})
    if run is not None:
        facts = run.facts | ({} if image_size is None else {"image_size": image_size})
        return Viewer(title, True, network, facts, run.finds_objects)
    classes = tuple(known.get("label_names") or ())
    if hasattr(network, "transform"):
        size = max(network.origin.image_size)
        ids = [*range(1, network.origin.num_classes)]
        facts = {"classes": classes[1:], "category_ids": ids, "image_size": size}
        return Viewer(title, kind == "saved", network, facts, True)
    channels, height, width = known["input_size"]
    if channels != 3 or height != width:
        raise UserError(f"{model} takes {channels} × {height} × {width}: wanted square images of 3 colours")
    if known.get("crop_mode", "center") != "center":
        raise UserError(
            f"{model} wants images in crop_mode {known['crop_mode']}, and here their centre is cut out: save "
            "it with a pretrained_cfg that says center, if that does for it"
        )
    from attneck.data.readers.folder import resampling

    try:
        resampling(known["interpolation"])
    except ValueError as error:
        raise UserError(f"{model}: {error}; save it with the one that it was trained by") from error
    facts = {"classes": classes, "image_size": image_size or height}
    facts |= {key: known[key] for key in ("mean", "std", "crop_pct", "interpolation")}
    return Viewer(title, kind == "saved", network, facts, False)
