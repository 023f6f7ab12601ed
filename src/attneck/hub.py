"""Models as files: safetensors weights, and a config from which the model is made.

A folder holds config.json and model.safetensors, as on the Hugging Face Hub; a single .safetensors file has
the config in its header. The config is laid out as timm's, so `timm.create_model("local-dir:FOLDER",
pretrained=True)` takes a classifier's folder too. A SHA-256 over config and weights shows damage and
changes. Nothing that is read can run code.

timm's `save_for_hf` is not used: it does not write atomically, has no checksum, takes no detector, and
needs huggingface_hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.errors import one_line
from attneck.files import write_atomic
from attneck.models.catalog import create_model, find
from attneck.models.origin import PREFIX, Origin, bare

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"

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
        ValueError: a model whose tensors are not those that the catalog makes (after surgery, for example);
            what `describe` refuses.
        OSError: the file could not be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

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
    config["sha256"] = _digest(config, state)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_bytes(state, {"format": "pt", "config": text}))
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / WEIGHTS, to_bytes(state, {"format": "pt"}))
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
    path = Path(source)
    if not path.exists():
        path = _download(str(source), **download)
    config, state = _read(path)
    if config.get("sha256") != _digest(config, state):
        raise ValueError(
            f"{path}: config and weights are not as they were saved together (SHA-256): damaged, changed, or "
            "of two models; get them anew, or save the model anew"
        )
    try:
        model = from_config(config, image_size)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a model that this version makes ({one_line(error)})") from error
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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a folder or a file."""
    from safetensors import SafetensorError, safe_open

    weights = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(weights, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        inside = metadata.pop("config", None)
        text = (path / CONFIG).read_text("utf-8") if path.is_dir() else inside
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no saved model: wanted {CONFIG} and {WEIGHTS} in it") from error
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cut short or damaged ({one_line(error)}); get it anew") from error
    if text is None:
        raise ValueError(
            f"{path} holds weights without a config: make their model and give it "
            "safetensors.torch.load_file(…) as a state dict"
        )
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: its config is damaged ({error}); get it anew") from error
    if not isinstance(config, dict) or metadata != {"format": "pt"}:
        raise ValueError(f"{path}: not what attneck.hub.save wrote; get it anew")
    return config, state


def _download(repo_id: str, **options: Any) -> Path:
    """Downloads a repository of the Hub; returns its folder."""
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise ValueError(f"{repo_id} is not there, and no repository of the Hub either (OWNER/NAME)")
    fetch = _huggingface_hub().snapshot_download
    try:
        return Path(fetch(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options))
    except (OSError, ValueError) as error:  # all of the Hub's errors are one of these
        raise ValueError(
            f"{repo_id} is not there, and the Hub did not give it ({one_line(error)})"
        ) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError("the Hub needs huggingface_hub: pip install 'attneck[hub]'") from error
    return huggingface_hub


def _digest(config: dict[str, Any], state: dict[str, Tensor]) -> str:
    """SHA-256 of the config without its sum, and of every tensor: name, type, shape and bytes."""
    import torch

    said = {key: value for key, value in config.items() if key != "sha256"}
    sums = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        sums.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        sums.update(array)
    return sums.hexdigest()


def _name(config: dict[str, Any]) -> str:
    """The catalog's name of the model."""
    return str(config["architecture"]).removeprefix(PREFIX)


def _tuple(value: Any) -> Any:
    """JSON's lists as tuples, as timm has them."""
    return tuple(value) if isinstance(value, list) else value
