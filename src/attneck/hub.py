"""Models as files: safetensors weights, and a config from which the model is made.

A .safetensors file has the config in its header; a folder has it as config.json too, as on the Hugging Face
Hub. The config is laid out as timm's, so `timm.create_model("local-dir:FOLDER", pretrained=True)` takes a
classifier's folder as well. A SHA-256 over config and weights shows damage and changes. Nothing that is read
can run code, and a config is bounded before its model is built: its weights hold that model's parameters.

timm's `save_for_hf` is not used: it does not write atomically, has no checksum, takes no detector, and
needs huggingface_hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attneck.errors import one_line
from attneck.files import write_atomic
from attneck.models.catalog import create_model, find
from attneck.models.options import MAX_CLASSES, MAX_SIDE, AsTuple, first_fault, image_side, whole_number
from attneck.models.origin import PREFIX, Origin, bare

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"

TIMEOUT = 10.0  # seconds for the Hub's answer

DATA = ("mean", "std", "interpolation", "crop_pct", "label_names")
"""The arguments of `describe` about the images."""

CARD = """---
{{ card_data }}
---

```python
import attneck

model = attneck.hub.load("{{ repo_id }}")
```
"""


def save(model: nn.Module, path: str | Path, **data: Any) -> Path:
    """Write `model` into the folder `path`, or into that one file where it ends in .safetensors.

    Args:
        model: from `create_model` or `load`, also inside `torch.compile` or an `AveragedModel`.
        data: the preprocessing of its images, as `describe` takes it.

    Raises:
        ValueError: a model whose tensors are not finite, or not those that the catalog makes (after surgery,
            for example); what `describe` refuses.
        OSError: the file could not be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from attneck.models.weight_files import digest
    from attneck.models.weights import cast

    config, path = describe(model, **data), Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in bare(model).state_dict().items()}
    with torch.device("meta"):
        again = from_config(config).state_dict()
    shapes, wanted = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (state, again))
    if shapes != wanted:
        other = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise ValueError(
            f"{len(other)} tensors ({other[0]} first) are not those of {_name(config)} any more, and the "
            "model could not be loaded: keep its state_dict() with safetensors.torch.save_file"
        )
    for name, tensor in state.items():
        cast(name, tensor, tensor.dtype)
    config["sha256"] = digest(state, config)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    data = to_bytes(state, {"format": "pt", "config": text})
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / WEIGHTS, data)
        write_atomic(path / CONFIG, text.encode())
    return path


def load(
    source: str | Path, *, image_size: int | tuple[int, int] | None = None, **download: Any
) -> nn.Module:
    """The model that was saved, in evaluation mode.

    Args:
        source: a folder or a .safetensors file that `save` wrote, else a repository of the Hub, OWNER/NAME.
        image_size: as for `create_model`, if it is not the saved one: position tables are resampled.
        download: for the Hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: no files, or files that are damaged, of two models, or not written by this library.
    """
    from attneck.models.weight_files import shown
    from attneck.models.weights import cast

    path = Path(source)
    if not os.path.exists(path):
        path = _download(str(source), **download)
    config, state = _read(path)
    try:
        has, wants = sum(tensor.numel() for tensor in state.values()), _least_parameters(config)
        if wants > has:
            raise ValueError(f"its config wants {wants} parameters or more, and its weights are {has}")
        model = from_config(config, image_size)
        own = model.state_dict()
        model.load_state_dict(
            {name: cast(name, state[name], own[name].dtype) if name in own else state[name] for name in state}
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{shown(path)}: not a model that this version makes ({one_line(error)[:150]})"
        ) from error
    return model.eval()


def push(model: nn.Module, repo_id: str, **options: Any) -> str:
    """Put `model` on the Hub with a model card, and return the commit's address.

    Args:
        repo_id: OWNER/NAME; made where it is not there.
        options: what `describe` takes, and what `ModelHubMixin.push_to_hub` takes: `private`, `token`,
            `branch`, `create_pr`, `commit_message` …

    Raises:
        ValueError: huggingface_hub is not installed; what `save` refuses.
    """
    _huggingface_hub()
    from huggingface_hub import ModelHubMixin

    data = {key: options.pop(key) for key in DATA if key in options}
    detects = find(_name(describe(model))).task == "detection"
    task = "object-detection" if detects else "image-classification"

    class Published(ModelHubMixin, library_name="attneck", pipeline_tag=task, model_card_template=CARD):
        def _save_pretrained(self, save_directory: Path) -> None:
            save(model, save_directory, **data)

    address: str = Published().push_to_hub(repo_id, model_card_kwargs={"repo_id": repo_id}, **options)
    return address


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
        crop_pct: side of the centre crop, as a share of the resized image's.
        label_names: the classes' names, in the order of the logits.

    Raises:
        ValueError: a model that `create_model` did not make, or lists of the wrong length.
    """
    model = bare(model)
    origin: Origin | None = getattr(model, "origin", None)
    if origin is None:
        raise ValueError(
            f"this {type(model).__name__} was not made by attneck.create_model, so no config can say how to "
            "make it: keep its state_dict() with safetensors.torch.save_file"
        )
    classes = getattr(model, "num_classes", origin.num_classes)
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", {}))
    transform: Any = getattr(model, "transform", None)  # a detector normalises images itself
    if transform is not None:
        known |= {"mean": transform.image_mean, "std": transform.image_std}
    if len(known.get("label_names", ())) != classes:  # those of a classifier that was taken off
        known.pop("label_names", None)
    given = dict(zip(DATA, (mean, std, interpolation, crop_pct, label_names), strict=True))
    for key, wanted in {"mean": origin.in_chans, "std": origin.in_chans, "label_names": classes}.items():
        value: Any = given[key]
        if value is not None and len(value) != wanted:
            raise ValueError(f"{key} has {len(value)} entries, wanted {wanted}")
    known |= {key: value for key, value in given.items() if value is not None}
    known["input_size"] = (origin.in_chans, *origin.image_size)
    fields = ("input_size", *DATA, "first_conv", "classifier")
    labels = {"label_names": known.pop("label_names")} if "label_names" in known else {}
    config = {
        "architecture": PREFIX + origin.name,
        "num_classes": classes,
        **labels,  # here, where transformers look for them too
        "model_args": {"img_size": origin.image_size, "in_chans": origin.in_chans, **origin.options},
        "pretrained_cfg": {key: known[key] for key in fields if key in known},
    }
    as_json: dict[str, Any] = json.loads(json.dumps(config))
    return as_json


def from_config(config: dict[str, Any], image_size: int | tuple[int, int] | None = None) -> nn.Module:
    """The model of a config from `describe`, freshly initialised; `image_size` replaces the config's.

    Raises:
        KeyError, TypeError, ValueError: not such a config, or a model that the catalog does not have.
    """
    arguments = dict(config["model_args"])
    size = tuple(arguments.pop("img_size"))
    model: Any = create_model(_name(config), config["num_classes"], image_size or size, **arguments)
    known = config["pretrained_cfg"] | {key: config[key] for key in config.keys() & {"label_names"}}
    if hasattr(model, "transform"):
        model.transform.image_mean, model.transform.image_std = known["mean"], known["std"]
    else:
        model.pretrained_cfg |= {key: _tuple(known[key]) for key in DATA if key in known}
    built: nn.Module = model
    return built


class _Images(BaseModel):
    """What a config says of the images, and of the names of two layers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    input_size: Annotated[tuple[int, int, int], AsTuple]
    mean: Annotated[tuple[float, ...], AsTuple]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AsTuple]
    interpolation: Annotated[str, Field(max_length=20)] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    first_conv: str | None = None
    classifier: str | None = None


class _Config(BaseModel):
    """What `describe` writes, and its sum."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    architecture: Annotated[str, Field(max_length=100)]
    num_classes: Annotated[int, Field(ge=0, le=MAX_CLASSES)]
    label_names: list[str] | None = None
    model_args: dict[str, Any]
    pretrained_cfg: _Images
    sha256: str


def _least_parameters(config: dict[str, Any]) -> int:
    """By arithmetic, of the model of this config; ValueError for a config that `describe` does not write."""
    try:
        checked = _Config(**config)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error
    arguments = dict(checked.model_args)
    size = image_side(arguments.pop("img_size"))
    chans = whole_number("in_chans", arguments.pop("in_chans"), 1, MAX_SIDE)
    labels, images = checked.label_names, checked.pretrained_cfg
    if labels is not None and len(labels) != checked.num_classes:
        raise ValueError(f"it has {len(labels)} label_names for {checked.num_classes} classes")
    if not chans == len(images.mean) == len(images.std):
        raise ValueError(
            f"mean and std are of {len(images.mean)} and {len(images.std)} channels, not {chans}"
        )
    return find(_name(config), arguments).options.least_parameters(checked.num_classes, size, chans)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a folder or a file, as they were saved together."""
    from attneck.models.weight_files import (
        LONGEST_CONFIG,
        check_regular,
        digest,
        read_safetensors,
        readable,
        shown,
    )

    try:
        state, header = read_safetensors(path / WEIGHTS if path.is_dir() else path)
        text = inside = header.pop("config", None)
        if path.is_dir():
            check_regular(path / CONFIG)
            with readable(path / CONFIG), (path / CONFIG).open(encoding="utf-8", newline="") as file:
                text = file.read(LONGEST_CONFIG + 1)
    except FileNotFoundError as error:
        raise ValueError(f"{shown(path)} is no saved model: wanted {CONFIG} and {WEIGHTS} in it") from error
    except ValueError as error:
        raise ValueError(f"{error}; if it was one, it is damaged: get it anew") from error
    if text is None:
        raise ValueError(
            f"{shown(path)} holds weights without a config: make their model and give it "
            "safetensors.torch.load_file(…) as a state dict"
        )
    try:
        if len(text) > LONGEST_CONFIG:
            raise ValueError(f"more than {LONGEST_CONFIG} characters")
        config = json.loads(text)
        found = digest(state, config) if isinstance(config, dict) else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)}: its config is damaged ({one_line(error)}); get it anew") from error
    if not isinstance(config, dict) or "sha256" not in config or header != {"format": "pt"}:
        raise ValueError(f"{shown(path)}: not what attneck.hub.save wrote; get it anew")
    if config["sha256"] != found or inside not in (None, text):
        raise ValueError(
            f"{shown(path)}: config and weights are not as they were saved together (SHA-256): damaged, "
            "changed, or of two models; get them anew, or save the model anew"
        )
    return config, state


def _download(repo_id: str, **options: Any) -> Path:
    """Downloads a repository of the Hub; returns its folder."""
    from attneck.models.weight_files import shown

    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise ValueError(f"{shown(repo_id)} is not there, and no repository of the Hub either (OWNER/NAME)")
    hub, unanswered = _huggingface_hub(), None
    if not options.get("local_files_only"):
        asked = {key: options[key] for key in ("revision", "token") if key in options}
        try:  # first, because snapshot_download waits for an answer for ever
            hub.HfApi().repo_info(repo_id, timeout=TIMEOUT, **asked)
        except Exception as error:  # the Hub's, or its HTTP library's: they have no base in common
            unanswered = error
            options["local_files_only"] = True  # it may have been downloaded before
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options))
    except Exception as error:
        raise ValueError(
            f"{shown(repo_id)} is not there, and the Hub did not give it ({one_line(unanswered or error)})"
        ) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError("the Hub needs huggingface_hub: pip install 'attneck[hub]'") from error
    return huggingface_hub


def _name(config: dict[str, Any]) -> str:
    """The catalog's name of the model."""
    return str(config["architecture"]).removeprefix(PREFIX)


def _tuple(value: Any) -> Any:
    """JSON's lists as tuples, as timm has them."""
    return tuple(value) if isinstance(value, list) else value
