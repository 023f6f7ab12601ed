"""attneck draw: a network's stages, their costs and the attention in them, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attneck.checks import sides
from attneck.commands.arguments import Flag, Options, call
from attneck.commands.given_model import kind_of, load
from attneck.commands.look import target, write
from attneck.errors import UserError, shown_path, user_mistakes
from attneck.models import catalog
from attneck.training.recipe import TIMM, Surgery

if TYPE_CHECKING:
    from torch import nn


def draw(
    model: Annotated[str, tyro.conf.Positional],
    /,
    save: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None,
    surgery: Surgery | None = None,
    surgery_options: Options = {},  # noqa: B006 - tyro's default, never changed
    image_size: int | None = None,
    options: Options = {},  # noqa: B006 - likewise
    dark: Flag = False,
) -> None:
    """Draw a network: the map and channels of each stage, parameters, multiply-adds, and its attention.

    With --surgery the network before and after it, the changed stages framed.

    Args:
        model: a name of `attneck list`, timm/NAME, a run's folder, or what attneck.hub.save wrote.
        save: the picture: .png, .svg or .pdf; if not given the model's name with -neck.png, here, with a
            number where that is taken.
        surgery: the function of attneck.surgery that changes it.
        surgery_options: its arguments, such as stage 3.
        image_size: side of the image in pixels; the model's own if not given.
        options: what the model is asked for beyond its name, such as bam stages.
        dark: on a dark page.
    """
    if surgery is None and surgery_options:
        raise UserError("--surgery-options would change nothing without --surgery: leave them out")
    of_timm = model.startswith(TIMM)
    kind = "name" if of_timm else kind_of(model)
    if options and kind != "name":
        raise UserError(
            f"--options are of a model that is built by its name, and {model} is saved: leave them out"
        )
    with user_mistakes():
        if not of_timm and kind == "name":
            catalog.find(model, dict(options))
        if image_size is not None:
            sides("--image-size", image_size)
    file = target(save, Path(model.rstrip("/")).name, "neck")

    from attneck.explain.neck import Drawn, neck
    from attneck.measure.stages import stages
    from attneck.surgery.by_name import operate

    with user_mistakes():
        network = _network(model, kind, image_size, dict(options))
        size = _size(network, image_size)
        title = " ".join([model, *(f"{name}={value}" for name, value in options.items())])
        drawn = [Drawn(title, stages(network, size))]
        if surgery is not None:
            operate(network, surgery, surgery_options, size)
            after = stages(network, size)
            changed = {stage.name for stage in after} - {stage.name for stage in drawn[0].stages}
            before = {stage.name: (stage.params, stage.attention) for stage in drawn[0].stages}
            changed |= {
                stage.name for stage in after if before.get(stage.name) != (stage.params, stage.attention)
            }
            drawn.append(Drawn(f"{title} after {surgery}", after, frozenset(changed)))
    write(neck(drawn, size, dark=dark), file)
    print(f"wrote {shown_path(file)}")


def _network(model: str, kind: Any, image_size: int | None, options: dict[str, Any]) -> nn.Module:
    """The model; one that is built by its name has no weights."""
    import torch

    if kind != "name":
        network: nn.Module = load(kind, model, image_size, False, "newest")[1]
        return network
    with torch.device("meta"):
        if not model.startswith(TIMM):
            return catalog.create_model(model, image_size=image_size, **options)
        from attneck.tasks.of_timm import made

        return made(model.removeprefix(TIMM), options)


def _size(network: Any, image_size: int | None) -> tuple[int, int]:
    """(height, width) of the image."""
    if image_size is not None:
        return image_size, image_size
    if (origin := getattr(network, "origin", None)) is not None:
        height, width = origin.image_size
        return height, width
    height, width = network.pretrained_cfg["input_size"][1:]
    return height, width


def main(words: list[str]) -> None:
    """Parse and run."""
    call(draw, "attneck draw", words)
