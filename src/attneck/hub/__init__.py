"""Models as files: safetensors weights, and a config from which the model is made.

A .safetensors file has the config in its header; a folder has it as config.json too, as on the Hugging Face
Hub. The config is laid out as timm's, so `timm.create_model("local-dir:FOLDER", pretrained=True)` takes a
classifier's folder as well. A SHA-256 over config and weights shows damage and changes. Nothing that is read
can run code, and a config is bounded before its model is built: its weights hold that model's parameters.
A run's folder has a model card too.

timm's `save_for_hf` is not used: it does not write atomically, has no checksum, takes no detector, and
needs huggingface_hub.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.errors import brief, one_line
from attneck.files import write_atomic
from attneck.hub.config import DATA, check_bounds, computed, describe, from_config, name_of
from attneck.layers.modes import evaluating
from attneck.models.origin import bare, is_detector
from attneck.training.recipe_file import RECIPE, is_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attneck.runs.run import Run

__all__ = ["describe", "from_config", "load", "push", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"

TIMEOUT = 10.0  # seconds for the Hub's answer

CARD = """---
{{ card_data }}
---

```python
import attneck

model = attneck.load("{{ repo_id }}")
```
"""


def save(
    model: nn.Module | Run | str | Path,
    path: str | Path,
    *,
    run: Run | None = None,
    license: str | None = None,
    **data: Any,
) -> Path:
    """Write `model` into the folder `path`, or into that one file where it ends in .safetensors.

    Of a run, the folder gets a model card too: README.md and curves.png.

    Args:
        model: a run or its folder; or a model from `create_model`, `load` or `Run.model`, or timm's made
            without options, each also after functions of `attneck.surgery`, and inside `torch.compile` or an
            `AveragedModel`.
        run: the run that the model is of, if it is given by itself.
        license: for the model card, by the Hub's identifier: apache-2.0, say.
        data: the preprocessing of its images, as `describe` takes it.

    Raises:
        ValueError: a `run` of another network; a folder with such a file of somebody else's; a model whose
            tensors are not finite, in parts (`fully_shard`), or not those that its config makes (of timm's
            with options, for example); one whose layers compute otherwise, by another stride, pool or
            `resample` say that was set after it was built; weights of float64; what `describe` refuses.
        OSError: the file could not be written.
        UserError: a run without a checkpoint that is whole.
    """
    from safetensors.torch import save as to_bytes

    from attneck.models.weight_files import digest

    network, run = _of(model, run)
    if license is not None and (run is None or Path(path).suffix == ".safetensors"):
        raise ValueError(f"license={brief(license)} is for the card, which a run's folder gets: give run too")
    path = Path(path)
    if path.suffix != ".safetensors":
        _check_own(path, with_card=run is not None)
    _check_whole(network)
    config = describe(network, **data)
    if run is not None:
        from attneck.hub.card import check_same_network

        check_same_network(run, config)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_made(network, config, state)
    config["sha256"] = digest(state, config)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    content = to_bytes(state, {"format": "pt", "config": text})
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        return path
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / WEIGHTS, content)
    write_atomic(path / CONFIG, text.encode())
    if run is not None:
        from attneck.hub.card import write_card

        write_card(run, config, state, path, license)
    return path


def _of(model: nn.Module | Run | str | Path, run: Run | None = None) -> tuple[nn.Module, Run | None]:
    """The network inside what is given, and the run that it is of, if it is one's."""
    from torch import nn

    from attneck.runs.run import Run

    if isinstance(model, nn.Module):
        return bare(model), run
    if isinstance(model, str | Path) and is_run(Path(model)):
        model = Run(model)
    if not isinstance(model, Run):
        raise ValueError(f"{brief(model)}: wanted a model, an attneck.Run, or the folder of one")
    return model.model(), model


def _check_whole(network: nn.Module) -> None:
    """ValueError where a process has a part of it alone, or its state is not tensors alone."""
    for name, one in network.state_dict().items():
        # A class that has its numbers in other tensors, as quantized and sharded ones have.
        made_of_others = hasattr(one, "__tensor_flatten__") and not hasattr(one, "full_tensor")
        if hasattr(one, "detach") and not made_of_others:
            continue
        raise ValueError(
            f"{name} is a {type(one).__name__} and no plain tensor, as in a quantized model: save "
            "the model as it was, and quantize what load makes, or the exported file"
        )
    sharded = next((name for name, one in network.state_dict().items() if hasattr(one, "full_tensor")), None)
    if sharded is not None:
        raise ValueError(
            f"{sharded} is in parts, one a process (fully_shard): give a model that has all of it, filled by "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict"
        )


def _check_made(network: nn.Module, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """ValueError unless load can make of config and state what `network` is."""
    import torch

    from attneck.models.weights import cast

    with torch.device("meta"):
        again = from_config(config)
    shapes, wanted = (
        {name: tensor.shape for name, tensor in tensors.items()} for tensors in (state, again.state_dict())
    )
    if shapes != wanted:
        other = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise ValueError(
            f"{len(other)} tensors ({other[0]} first) are not those of {name_of(config)} any more, and the "
            "model could not be loaded: keep its state_dict() with safetensors.torch.save_file"
        )
    now, then = computed(network), computed(again)
    differing = [key for key in now | then if now.get(key) != then.get(key)]
    if differing:  # the kind of a layer first: of another kind its settings differ too
        first = min(differing, key=lambda key: (not key.endswith(" kind"), key))
        raise ValueError(
            f"its {first} is {now.get(first, 'not there')} and would be {then.get(first, 'not there')} in "
            "what load makes, as no config says what was set after a model was built: build it with that as "
            "an option, or keep its state_dict() with safetensors.torch.save_file"
        )
    for name, tensor in state.items():
        cast(name, tensor, tensor.dtype)
        if tensor.dtype == torch.float64:
            raise ValueError(
                f"{name} is of float64, and load makes float32: give model.float(), or keep its state_dict() "
                "with safetensors.torch.save_file"
            )
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in network.modules()
    )
    if hooked or getattr(network, "origin", None) is None:
        _check_same_results(network, config, state)


def _check_same_results(network: nn.Module, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """ValueError unless the model of a config makes of an image what `network` makes of it.

    What somebody else's program built may have been given anything.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.random.fork_rng(devices=[]):  # a training goes on with the draws that it would have had
        again = from_config(config)
        image = torch.rand(1, *config["pretrained_cfg"]["input_size"])
    again.load_state_dict(state)
    weight, *_ = network.parameters()
    if weight.device.type == "cpu" and weight.dtype in (torch.float16, torch.bfloat16):
        network = deepcopy(network).float()  # not every processor has convolutions in these
        weight, *_ = network.parameters()
    image = image.to(weight)
    given = [*image] if is_detector(network) else image
    with torch.no_grad(), evaluating(network), _keeping_all(network, again):
        both = network(given), again.to(weight).eval()(given)
    if not all(map(_alike, *map(tree_leaves, both))):
        raise ValueError(
            f"{name_of(config)} makes another result of an image than this {type(network).__name__} with the "
            "same weights, which was made with options, or has hooks, that no config knows: keep its "
            "state_dict() with safetensors.torch.save_file"
        )


def _alike(want: Tensor, got: Tensor) -> bool:
    """Equal to rounding."""
    if want.shape != got.shape:
        return False
    scale = float(want.nan_to_num(0, 0, 0).abs().amax()) if want.numel() else 0.0
    return want.allclose(got, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


@contextmanager
def _keeping_all(*networks: nn.Module) -> Iterator[None]:
    """Detectors keep what they are least sure of too: else of an image of noise there may be nothing."""
    parts: list[Any] = [one for net in networks for one in net.modules() if hasattr(one, "score_thresh")]
    before = [one.score_thresh for one in parts]
    try:
        for one in parts:
            one.score_thresh = 0.0
        yield
    finally:
        for one, least in zip(parts, before, strict=True):
            one.score_thresh = least


def _check_own(folder: Path, *, with_card: bool) -> None:
    """ValueError where a file would be replaced that no save has written: a save begins with its weights."""
    from safetensors import SafetensorError, safe_open

    from attneck.hub import card

    names = (WEIGHTS, CONFIG, *((card.CARD, card.PICTURE) if with_card else ()))
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            own = "config" in (file.metadata() or {})
    except (OSError, SafetensorError):
        own = False
    if not own and (there := next((name for name in names if (folder / name).exists()), None)):
        raise ValueError(
            f"{folder} has a {there} that is of no model saved there, and it would be replaced: give a new "
            "folder, or move that file away"
        )


def load(
    source: str | Path | Run, *, image_size: int | tuple[int, int] | None = None, **download: Any
) -> nn.Module:
    """The model of a run, or one that was saved, in evaluation mode and float32; public as `attneck.load`.

    Weights that were saved in half precision become float32, which loses nothing.

    Args:
        source: a run or its folder; a folder or a .safetensors file that `save` wrote; else a repository of
            the Hub, OWNER/NAME.
        image_size: as for `create_model`, if it is not the model's own: position tables are resampled.
        download: for the Hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ValueError: no files, or files that are damaged, of two models, or not written by this library; an
            option of a download for what lies here.
        UserError: a run without a checkpoint that is whole.
    """
    from attneck.models.weight_files import shown
    from attneck.models.weights import cast
    from attneck.runs.run import Run

    if not isinstance(source, (str, Path, Run)) or not str(source):
        raise ValueError(f"{brief(source)}: wanted a run, a folder, a .safetensors file or OWNER/NAME")
    path = source.folder if isinstance(source, Run) else Path(source)
    is_here = os.path.exists(path)
    if download and is_here:
        raise ValueError(
            f"{', '.join(download)} would change nothing: {shown(path)} lies here, so there is no download; "
            "leave it out (load itself takes image_size)"
        )
    if isinstance(source, Run):
        return source.model(image_size)
    if is_run(path):
        return Run(path).model(image_size)
    if not is_here:
        path = _download(str(source), **download)
    config, state = _read(path)
    try:
        check_bounds(config, state)
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


def push(model: nn.Module | Run | str | Path, repo_id: str, **options: Any) -> str:
    """Put `model` on the Hub with a model card, and return the commit's address.

    Args:
        repo_id: OWNER/NAME; made where it is not there.
        options: what `save` takes, and what `ModelHubMixin.push_to_hub` takes: `private`, `token`, `branch`,
            `create_pr`, `commit_message` …

    Raises:
        ValueError: huggingface_hub is not installed; what `save` refuses.
    """
    from attneck.hub.card import TASKS, task_of

    _huggingface_hub()
    from huggingface_hub import ModelHubMixin

    data = {key: options.pop(key) for key in DATA if key in options}
    license: str | None = options.pop("license", None)
    network, run = _of(model, options.pop("run", None))
    task = TASKS[task_of(describe(network))]

    class Published(
        ModelHubMixin,
        library_name="attneck",
        pipeline_tag=task,
        license=license,
        model_card_template=CARD,
    ):
        def _save_pretrained(self, save_directory: Path) -> None:
            shutil.copytree(saved, save_directory, dirs_exist_ok=True)

    with tempfile.TemporaryDirectory() as place:
        # Before the mixin makes the repository: what is refused leaves none.
        saved = save(network, Path(place, "model"), run=run, license=license if run else None, **data)
        address: str = Published().push_to_hub(repo_id, model_card_kwargs={"repo_id": repo_id}, **options)
    return address


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights of a folder or a file, as they were saved together."""
    from attneck.models.weight_files import (
        LONGEST_CONFIG,
        SHARDED,
        check_one_file,
        check_regular,
        digest,
        of_torch_save,
        read_safetensors,
        readable,
        shown,
    )

    check_one_file(path)
    try:
        state, header = read_safetensors(path / WEIGHTS if path.is_dir() else path)
        text = inside = header.pop("config", None)
        if path.is_dir():
            check_regular(path / CONFIG)
            with readable(path / CONFIG), (path / CONFIG).open(encoding="utf-8", newline="") as file:
                text = file.read(LONGEST_CONFIG + 1)
    except FileNotFoundError as error:
        check_one_file(path / f"{WEIGHTS}{SHARDED}")
        raise ValueError(
            f"{shown(path)} is no saved model, and no run: wanted {CONFIG} and {WEIGHTS}, or {RECIPE}, in it"
        ) from error
    except ValueError as error:
        if of_torch_save(path):
            raise ValueError(
                f"{shown(path)} is a file of torch.save, without a config: make its model and give it "
                "torch.load(…, weights_only=True) as a state dict; of a run, give the folder"
            ) from error
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
            "changed, or of two models; get them anew, save the model anew, or take the weights alone by "
            "attneck.load_matching"
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
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS], **options))
    except Exception as error:
        raise ValueError(
            f"{shown(repo_id)} is not there, and the Hub did not give it ({one_line(unanswered or error)})"
        ) from error
    if not all((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        raise ValueError(
            f"{shown(repo_id)}: that repository is no saved model: it has no {CONFIG} and {WEIGHTS}"
        )
    return folder


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError("the Hub needs huggingface_hub: pip install 'attneck[hub]'") from error
    return huggingface_hub
