"""attneck count: what a model costs."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import tyro

from attneck.checks import whole
from attneck.commands.arguments import Flag, Json, Options, call
from attneck.commands.counted import Asked, counted, counts_of
from attneck.errors import UserError
from attneck.measure.kept import Counts
from attneck.models import catalog
from attneck.models.options import MAX_CLASSES
from attneck.training.recipe import TIMM


def show(
    model: Annotated[str, tyro.conf.Positional],
    /,
    image_size: int | None = None,
    num_classes: int | None = None,
    options: Options = {},  # noqa: B006 - tyro's default, never changed
    stages: Flag = False,
    json_: Json = False,
) -> None:
    """Parameters and multiply-adds of a model, for one image.

    Args:
        model: a name of `attneck list`, or timm/NAME.
        image_size: side in pixels; the published one if not given.
        num_classes: width of the classifier, 0 for none; the published one if not given.
        options: what the model is asked for beyond its name, such as bam_dilation 2.
        stages: each part of the model as well.
        json_: print one JSON document and nothing else.
    """
    of_timm = model.startswith(TIMM)
    try:
        if image_size is not None:
            whole("--image-size", image_size)
        if num_classes is not None:
            whole("--num-classes", num_classes, least=0, most=MAX_CLASSES)
        if of_timm:
            asked, counts = _of_timm(model, image_size, num_classes, dict(options), stages)
        else:
            entry = catalog.find(model, dict(options))
            size = entry.image_size if image_size is None else image_size
            classes = entry.num_classes if num_classes is None else num_classes
            asked = Asked(model, dict(options), size, classes)
            counts = counted(asked, stages=True) if stages else counts_of(asked)
    except ValueError as error:
        raise UserError(str(error)) from None
    if json_:
        document = asked._asdict()
        figures = dataclasses.asdict(counts)
        figures["stages"] = counts.stages and {
            name: {"params": params, "madds": madds} for name, (params, madds) in counts.stages.items()
        }
        print(json.dumps(document | {key: value for key, value in figures.items() if value is not None}))
        return
    size = asked.image_size
    print(f"{model}, one image of {size}×{size}, {asked.num_classes} classes")
    for name, what, value in (
        ("parameters", "all", counts.params),
        # Of others' position tables nothing is known.
        ("", f"without BatchNorm{'' if of_timm else ' and position tables'} (BoTNet)", counts.params_paper),
        ("", "without biases (two rows of BAM's Table 1)", counts.params_weights),
        ("M.Adds", "convolutions and matrix products", counts.madds),
        ("", "without the classifier", counts.madds_no_classifier),
    ):
        print(f"{name:10}  {value:>17,}  {what}")
    for name, (params, madds) in (counts.stages or {}).items():
        print(f"  {name:20} {params:>17,} parameters {madds:>20,} M.Adds")


def _of_timm(
    model: str, image_size: int | None, num_classes: int | None, options: dict[str, Any], stages: bool
) -> tuple[Asked, Counts]:
    """One of timm's, at its own size and with its own classes where none are given."""
    import torch

    from attneck.measure import count
    from attneck.tasks.of_timm import made

    asked = {} if num_classes is None else {"num_classes": num_classes}
    with torch.device("meta"):
        network: Any = made(model.removeprefix(TIMM), options, **asked)
    size = network.pretrained_cfg["input_size"][-1] if image_size is None else image_size
    return Asked(model, options, size, network.num_classes), count(network, size, stages=stages)


def main(words: list[str]) -> None:
    """Parse and run."""
    call(show, "attneck count", words)
