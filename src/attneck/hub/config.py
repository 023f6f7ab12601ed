"""The config of a saved model: what it is made from, without its weights, and the images that it wants.

It is laid out as timm's, so timm and transformers make from it what timm can make: the catalog's classifiers
(as `attneck_NAME`) and timm's own networks. For a network after surgery, which timm cannot make,
`architecture` is a name that timm does not know, and `surgery` says what was done to what.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from attneck.checks import sides, whole
from attneck.models.catalog import create_model, find
from attneck.models.options import MAX_CLASSES, AsTuple, first_fault
from attneck.models.origin import FETCHING, PREFIX, Origin, bare, is_detector
from attneck.training.recipe import TIMM, Model

if TYPE_CHECKING:
    from torch import Tensor, nn

DATA = ("mean", "std", "interpolation", "crop_pct", "label_names")
"""The arguments of `describe` about the images."""

CHANGED = f"{PREFIX}after_surgery"
"""The architecture of a network that surgery changed."""


def describe(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    label_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """How to make `model` without its weights, and the preprocessing of its images, as JSON.

    What is not given is the model's own: ImageNet's, unless it was loaded with another.

    Args:
        mean, std: a number a channel, of images in [0, 1].
        interpolation: of resizing: "bilinear", "bicubic" …
        crop_pct: side of the centre crop, as a share of the resized image's; above 1 (2 at most) there is
            black around it.
        label_names: the classes' names, in the order of the logits; a detector's with the background first.

    Raises:
        ValueError: a model that neither `create_model`, timm nor a run made; one after surgeries for several
            image sizes, or after one of them twice with different options; lists of the wrong length; what
            no image can be prepared by, such as a `std` of 0.
    """
    model = bare(model)
    origin = _origin(model)
    classes = getattr(model, "num_classes", origin.num_classes)
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", {}))
    if is_detector(model):  # which normalises images itself
        transform: Any = model.transform
        known |= {"mean": transform.image_mean, "std": transform.image_std}
    if len(known.get("label_names") or ()) != classes:  # those of a classifier that was taken off
        known.pop("label_names", None)
    given = dict(zip(DATA, (mean, std, interpolation, crop_pct, label_names), strict=True))
    for key, wanted in {"mean": origin.in_chans, "std": origin.in_chans, "label_names": classes}.items():
        value: Any = given[key]
        if value is not None and len(value) != wanted:
            raise ValueError(f"{key} has {len(value)} entries, wanted {wanted}")
    known |= {key: value for key, value in given.items() if value is not None}
    known["input_size"] = (origin.in_chans, *origin.image_size)
    if known.get("crop_mode") == "center":  # as where none is said
        del known["crop_mode"]
    fields = ("input_size", *DATA, "crop_mode", "first_conv", "classifier")
    labels = {"label_names": known.pop("label_names")} if "label_names" in known else {}
    arguments: dict[str, Any] = dict(origin.options)
    if not origin.name.startswith(TIMM):
        arguments = {"img_size": origin.image_size, "in_chans": origin.in_chans, **arguments}
    base = origin.name.removeprefix(TIMM) if origin.name.startswith(TIMM) else PREFIX + origin.name
    config = {
        "architecture": base if origin.surgery == "none" else CHANGED,
        "num_classes": classes,
        **labels,  # here, where transformers look for them too
        "model_args": arguments,
        "pretrained_cfg": {key: known[key] for key in fields if known.get(key) is not None},
    }
    if origin.surgery != "none":
        config["surgery"] = {"base": base, "name": origin.surgery, "options": origin.surgery_options}
    as_json: dict[str, Any] = json.loads(json.dumps(config))
    _checked(as_json | {"sha256": ""})  # what load would refuse
    return as_json


def _origin(model: Any) -> Origin:
    """How it was made: as it says itself, or by timm without options; and what was done on it.

    Raises ValueError for what `describe` refuses.
    """
    from attneck.surgery.recorded import done_on

    kind, done = type(model).__name__, done_on(model)
    origin: Origin | None = getattr(model, "origin", None)
    sizes = {one.image_size: one.name for one in done if one.image_size is not None}
    if len(sizes) > 1:
        said = ", ".join(f"{name} for {height}×{width}" for (height, width), name in sizes.items())
        raise ValueError(
            f"on this {kind} {said} were done, and a config says one image_size: give all the same, or keep "
            "its state_dict() with safetensors.torch.save_file"
        )
    last = {one.name: one.options for one in done}
    if twice := next((one.name for one in done if one.options != last[one.name]), None):
        raise ValueError(
            f"on this {kind} {twice} was done twice with different options, and a config says one of each: "
            "keep its state_dict() with safetensors.torch.save_file"
        )
    size = next(iter(sizes), None)
    if origin is None:
        known = getattr(model, "pretrained_cfg", None) or {}
        name, classes = known.get("architecture"), getattr(model, "num_classes", None)
        if name is None or classes is None or not type(model).__module__.startswith("timm."):
            raise ValueError(
                f"this {kind} was not made by attneck.create_model, timm or a run, so no config can say how "
                "to make it: keep its state_dict() with safetensors.torch.save_file"
            )
        origin = Origin(TIMM + name, classes, tuple(known["input_size"][1:]), 3, {})
    if done:
        options = {
            f"{one.name}." * (len(done) > 1) + key: [*value]
            if isinstance(value, Sequence) and not isinstance(value, str)
            else value
            for one in done
            for key, value in one.options.items()
        }
        names = "+".join(one.name for one in done)
        origin = replace(origin, image_size=size or origin.image_size, surgery=names, surgery_options=options)
    return origin


NOT_COMPUTED = {
    *("training", "inplace", "momentum", "backend", "grad_checkpointing", "process_group"),
    *("p", "drop_prob", "drop_rate", "scale_by_keep"),
    *("image_mean", "image_std"),
}
"""Attributes of layers that change no result of a network in evaluation mode, or that a config has."""

SELECTION = ("_pre_nms_top_n", "_post_nms_top_n")
"""How many proposals a detector keeps, which torchvision keeps to itself."""


def computed(model: nn.Module) -> dict[str, str]:
    """What its layers compute that its tensors do not show, by the layer's name and what is set there.

    That is the kind of each module without children, and public attributes that are numbers, words or lists
    of such.
    """
    from torch import nn

    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Softmax | nn.Dropout | nn.Identity):  # as `MHSA2d.show_maps` puts in
            continue
        said = {
            key: value
            for key, value in vars(module).items()
            if key in SELECTION or (key not in NOT_COMPUTED and _is_plain(key, value))
        }
        if not any(True for _ in module.children()):
            # Statistics over several processes matter in training alone.
            norm = isinstance(module, nn.SyncBatchNorm | nn.BatchNorm1d | nn.BatchNorm2d)
            said["kind"] = "BatchNorm" if norm else type(module).__name__
        found |= {f"{name} {key}".strip(): str(value) for key, value in said.items()}
    return found


def _is_plain(key: str, value: object) -> bool:
    """Whether it is a public attribute that JSON could say."""
    if isinstance(value, list | tuple):
        return all(_is_plain(key, each) for each in value)
    return not key.startswith("_") and (value is None or isinstance(value, int | float | str))


def from_config(config: dict[str, Any], image_size: int | tuple[int, int] | None = None) -> nn.Module:
    """The model of a config from `describe`, freshly initialised; `image_size` replaces the config's.

    Raises:
        KeyError, TypeError, ValueError: not such a config, or a model that cannot be made.
    """
    arguments, images = dict(config["model_args"]), config["pretrained_cfg"]
    name, model = name_of(config), None
    if name.startswith(TIMM) or "surgery" in config:
        model = _of_a_run(name, config, image_size)
    else:
        size = tuple(arguments.pop("img_size"))
        model = create_model(name, config["num_classes"], image_size or size, **arguments)
    known = images | {key: config[key] for key in config.keys() & {"label_names"}}
    network: Any = model
    if is_detector(network):
        network.transform.image_mean, network.transform.image_std = known["mean"], known["std"]
        if "label_names" in known:
            network.pretrained_cfg = {"label_names": tuple(known["label_names"])}
    else:
        own = {
            key: tuple(known[key]) if isinstance(known[key], list) else known[key]
            for key in DATA & known.keys()
        }
        own["input_size"] = (network.origin.in_chans, *network.origin.image_size)
        own["crop_mode"] = known.get("crop_mode", "center")  # timm's may be another of the same architecture
        network.pretrained_cfg = dict(network.pretrained_cfg) | own
    return model


def _of_a_run(name: str, config: dict[str, Any], image_size: int | tuple[int, int] | None) -> nn.Module:
    """A network of timm's, or one after surgery, as a run builds it."""
    from attneck.tasks.classification import build_classifier

    options = {
        key: value for key, value in config["model_args"].items() if key not in ("img_size", "in_chans")
    }
    changed = config.get("surgery", {"name": "none", "options": {}})
    model = Model(name=name, options=options, surgery=changed["name"], surgery_options=changed["options"])
    size = image_size or tuple(config["pretrained_cfg"]["input_size"][1:])
    return build_classifier(model, config["num_classes"], size)


def name_of(config: dict[str, Any]) -> str:
    """The catalog's name of the model, or of what surgery changed; `timm/NAME` of one of timm's."""
    architecture = str(config["surgery"]["base"] if "surgery" in config else config["architecture"])
    return architecture.removeprefix(PREFIX) if architecture.startswith(PREFIX) else TIMM + architecture


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(max_length=100)]
Names = Annotated[list[Name], Field(max_length=20)]


class _Images(_Part):
    """What a config says of the images, and of the names of two layers."""

    input_size: Annotated[tuple[int, int, int], AsTuple]
    mean: Annotated[tuple[float, ...], AsTuple]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AsTuple]
    interpolation: Annotated[str, Field(max_length=20)] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=2)] | None = None  # above 1 with a border
    crop_mode: Literal["center", "squash", "border"] | None = None
    first_conv: Name | Names | None = None
    classifier: Name | Names | None = None


Number = Annotated[int, Field(ge=-(10**5), le=10**5)]
Options = TypeAdapter(
    dict[Name, bool | Number | float | Name | Annotated[list[Number], Field(max_length=100)]],
    config=ConfigDict(strict=True, allow_inf_nan=False),
)
"""Of networks whose builders check nothing: no number so great that a list of as many fills the memory."""


class _Surgery(_Part):
    base: Name
    name: Name
    options: dict[str, Any]


class _Config(_Part):
    """What `describe` writes, and its sum."""

    architecture: Name
    num_classes: Annotated[int, Field(ge=0, le=MAX_CLASSES)]
    label_names: list[str] | None = None
    model_args: dict[str, Any]
    pretrained_cfg: _Images
    surgery: _Surgery | None = None
    sha256: str


def _checked(config: dict[str, Any]) -> _Config:
    """ValueError for a field or a value that no config has."""
    try:
        return _Config(**config)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error


def check_bounds(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """ValueError for a config that `describe` does not write, or whose model is larger than the weights.

    Of the catalog's, the least number of parameters is arithmetic. Any other is made without storage first,
    and no further than its weights reach.
    """
    checked = _checked(config)
    labels, images, arguments = checked.label_names, checked.pretrained_cfg, dict(checked.model_args)
    name, chans = name_of(config), images.input_size[0]
    size = sides("image_size", images.input_size[1:])
    if not name.startswith(TIMM):
        size = sides("image_size", arguments.pop("img_size"))
        chans = whole("in_chans", arguments.pop("in_chans"))
    elif FETCHING & arguments.keys():  # which reads other files
        raise ValueError(f"its model_args have {', '.join(sorted(FETCHING & arguments.keys()))}")
    if labels is not None and len(labels) != checked.num_classes:
        raise ValueError(f"it has {len(labels)} label_names for {checked.num_classes} classes")
    if not chans == len(images.mean) == len(images.std):
        raise ValueError(
            f"mean and std are of {len(images.mean)} and {len(images.std)} channels, not {chans}"
        )
    has = sum(tensor.numel() for tensor in state.values())
    if checked.surgery is None and not name.startswith(TIMM):
        wants = find(name, arguments).options.least_parameters(checked.num_classes, size, chans)
        if wants > has:
            raise ValueError(f"its config wants {wants} parameters or more, and its weights are {has}")
        return
    import torch

    for options in (arguments, {} if checked.surgery is None else checked.surgery.options):
        try:
            Options.validate_python(options)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from error
    # Surgery takes the 3×3 convolutions out, which may have been two thirds of the whole.
    with torch.device("meta"), _no_larger(4 * has + 10_000, 10 * len(state) + 1000):
        from_config(config)


@contextmanager
def _no_larger(numbers: int, parts: int) -> Iterator[None]:
    """Inside it modules are registered with no more numbers and parts than that; ValueError at the first."""
    from torch.nn.modules import module as hooks

    left = {"numbers": numbers, "parts": parts}

    def note(_module: Any, _name: str, part: Any) -> None:
        left["parts"] -= 1
        left["numbers"] -= part.numel() if hasattr(part, "numel") else 0
        if min(left.values()) < 0:
            raise ValueError("its config wants a larger model than its weights are")

    registered = [
        hooks.register_module_parameter_registration_hook(note),
        hooks.register_module_buffer_registration_hook(note),
        hooks.register_module_module_registration_hook(note),
    ]
    try:
        yield
    finally:
        for hook in registered:
            hook.remove()
