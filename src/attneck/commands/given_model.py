"""What a command's word for a model stands for: a run, a saved model, timm's weights or a name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attneck.commands.arguments import Checkpoint
from attneck.errors import UserError, suggestion, user_mistakes
from attneck.models import catalog
from attneck.training.checkpoint_files import named
from attneck.training.recipe import TIMM
from attneck.training.recipe_file import is_run

if TYPE_CHECKING:
    from attneck.runs.run import Run
    from attneck.serve.network import Viewer

Kind = Literal["run", "saved", "timm", "name"]


def kind_of(model: str) -> Kind:
    """What the word stands for.

    Raises:
        UserError: nothing, or a run that has saved nothing yet.
    """
    path = Path(model)
    if is_run(path):
        if not named(path / "checkpoints"):
            raise UserError(
                f"{model}: no checkpoint there yet (attneck train {shlex.quote(model)} makes them)"
            )
        return "run"
    if (path / "config.json").is_file() or (path.suffix == ".safetensors" and path.is_file()):
        return "saved"
    if model.startswith(TIMM):
        return "timm"
    names = list(catalog.CATALOG)
    if model in names:
        return "name"
    if path.exists():
        raise UserError(
            f"{model} is no run (recipe.yaml) and no saved model (config.json, or a .safetensors file)"
        )
    raise UserError(
        f"no model or run is called {model!r}{suggestion(model, names)} (attneck list: the models; "
        f"{TIMM}NAME: timm's weights)"
    )


def only_of_runs(model: str | Path, kind: Kind, given: dict[str, bool]) -> None:
    """UserError for the first of these flags that was given, where the model is no run."""
    if kind != "run" and (flag := next((flag for flag, is_given in given.items() if is_given), None)):
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
    if kind == "timm":
        from attneck.models import pretrained

        return None, pretrained.network(model, image_size=image_size), image_size
    from attneck.models import create_model

    return None, create_model(model, image_size=image_size), image_size


def viewer(model: str, image_size: int | None = None, checkpoint: Checkpoint = "newest") -> Viewer:
    """The model that a word stands for, ready for photos; `checkpoint` is of a run.

    Raises:
        UserError: no such model, or one whose images are not square or not of three colours.
    """
    kind = kind_of(model)
    from attneck.models.origin import is_detector
    from attneck.serve.network import Viewer
    from attneck.tasks.described import facts_of

    with user_mistakes():
        run, network, _ = load(kind, model, image_size, False, checkpoint)
    network.eval()
    if run is not None:
        made = run.recipe.model
        surgery = "" if made.surgery == "none" else f" after {made.surgery}"
        title = f"{made.name}{surgery}, step {run.step:,}"
        facts = run.facts | ({} if image_size is None else {"image_size": image_size})
        return Viewer(title, True, network, facts, run.finds_objects)
    try:
        facts = facts_of(network)
    except ValueError as error:
        raise UserError(f"{model}: {error}") from error
    detects = is_detector(network)
    if image_size is not None and not detects:
        facts["image_size"] = image_size
    if kind == "timm":
        from attneck.surgery import adopt
        from attneck.surgery.others import kind_of as theirs

        facts["classes"] = _imagenet(network)
        if any(map(theirs, network.modules())):
            adopt(network)  # the same function, and its maps can be seen
    return Viewer(model, kind != "name", network, facts, detects)


def _imagenet(network: Any) -> tuple[str, ...]:
    """The names of the classes that timm's weights tell apart, where it knows them: ImageNet's sets."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(network)
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(label) for label in range(info.num_classes()))
