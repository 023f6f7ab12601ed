"""attneck draw: a network's stages and their costs, or what a module of it computes, as a picture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attneck.checks import sides
from attneck.commands.arguments import Flag, Options, call
from attneck.commands.given_model import kind_of, load
from attneck.commands.output_file import picture_file, write_picture
from attneck.errors import UserError, say, shown_path, user_mistakes
from attneck.models import catalog
from attneck.training.recipe import TIMM, check_surgery

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn


def draw(
    models: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    save: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None,
    surgery: str = "none",
    surgery_options: Options = {},  # noqa: B006 - tyro's default, never changed
    inside: str | None = None,
    image_size: int | None = None,
    options: Options = {},  # noqa: B006 - likewise
    dark: Flag = False,
) -> None:
    """Draw networks: the map and channels of each stage, parameters, multiply-adds, and its attention.

    Of several networks, or with --surgery one before and after it, the stages are framed that are not as in
    the first. With --inside what a module of them computes, a block, a stage or an attention layer: its
    operations, and the maps between them.

    Args:
        models: names of `attneck list`, timm/NAME, a run's folder, or what attneck.hub.save wrote.
        save: the picture: .png, .svg or .pdf; if not given the first model's name with -neck.png, here, with
            a number where that is taken (of --inside with its name).
        surgery: the function of attneck.surgery that changes them: adopt, attend, insert_attention_block,
            insert_bam, insert_se; or several joined by +, done in that order: attend+insert_bam.
        surgery_options: its arguments, such as stage 3; of several functions attend.stage 3.
        inside: a module's name, such as layer4.0: that is drawn, in place of the stages.
        image_size: side of the image in pixels; the model's own if not given.
        options: what the models are asked for beyond their names, such as bam stages.
        dark: on a dark page.
    """
    with user_mistakes():
        check_surgery(surgery)
    if surgery == "none" and surgery_options:
        raise UserError("--surgery-options would change nothing without --surgery: leave them out")
    if not models:
        raise UserError("attneck draw wants a model: a name of `attneck list`, timm/NAME, or a folder")
    kinds = {model: "name" if model.startswith(TIMM) else kind_of(model) for model in models}
    for model, kind in kinds.items():
        if options and kind != "name":
            raise UserError(
                f"--options are of a model that is built by its name, and {model} is saved: leave them out"
            )
    with user_mistakes():
        for model, kind in kinds.items():
            if kind == "name" and not model.startswith(TIMM):
                catalog.find(model, dict(options))
        if image_size is not None:
            sides("--image-size", image_size)
    file = picture_file("--save", save, f"{Path(models[0].rstrip('/')).name}-{inside or 'neck'}")
    with user_mistakes():
        states: dict[str, nn.Module] = {}
        for model, kind in kinds.items():
            title = " ".join([model, *(f"{name}={value}" for name, value in options.items())])
            states[title] = network = _network(model, kind, image_size, dict(options))
            if surgery != "none":
                from attneck.surgery.by_name import operate

                states[f"{title} after {surgery}"] = changed = copy.deepcopy(network)
                operate(changed, surgery, surgery_options, _size(network, image_size))
        sizes = {title: _size(network, image_size) for title, network in states.items()}
        figure = _stages(states, sizes, dark) if inside is None else _inside(states, inside, sizes, dark)
    write_picture(figure, file)
    print(f"wrote {shown_path(file)}")


Sizes = dict[str, tuple[int, int]]
"""(height, width) of the image, by the network's title."""


def _stages(states: dict[str, nn.Module], sizes: Sizes, dark: bool) -> Figure:
    """The networks' stages; those framed that differ from the first one's."""
    from attneck.explain.neck import Drawn, neck
    from attneck.explain.stages import stages

    drawn: list[Drawn] = []
    for title, network in states.items():
        found = stages(network, sizes[title])
        before = {stage.name: (stage.params, stage.attention) for stage in drawn[0].stages} if drawn else {}
        changed = {stage.name for stage in found if before.get(stage.name) != (stage.params, stage.attention)}
        drawn.append(Drawn(title, sizes[title], found, frozenset(changed if drawn else ())))
    return neck(drawn, dark=dark)


def _inside(states: dict[str, nn.Module], name: str, sizes: Sizes, dark: bool) -> Figure:
    """What the module called `name` computes, in each network that has it as more than one operation."""
    from attneck.explain.diagram import diagram
    from attneck.explain.inside import Box, inside

    drawn: list[tuple[str, list[Box]]] = []
    faults: dict[str, ValueError] = {}
    for title, network in states.items():
        try:
            drawn.append((f"{name} of {title}", inside(network, name, sizes[title])))
        except ValueError as error:
            faults[title] = error
    if not drawn:
        raise [*faults.values()][-1]
    for title, fault in faults.items():
        say(f"{title} is left out: {fault}")
    return diagram(drawn, dark=dark)


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
