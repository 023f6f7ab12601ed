"""timm's pretrained weights as a start, by their name: fetched once by timm's own download.

What is in the Hugging Face cache is taken from there, and no network is asked. What is not is refused at once
where the network is down: the hub's client alone would try for a minute.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attneck.errors import brief, one_line, suggestion
from attneck.models.origin import is_detector

if TYPE_CHECKING:
    from torch import nn

    from attneck.models.weight_files import Weights
    from attneck.models.weights import Loaded

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation by channel, of images in [0, 1]."""

PATIENCE = 5.0
"""Seconds that the hub may take to answer."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm takes from the hub, the first that is there."""


def check_name(name: Any) -> str:
    """The name of weights that timm has, without the hub's `timm/`; ValueError for anything else."""
    import timm

    if not isinstance(name, str):
        raise ValueError(
            f"pretrained={brief(name)}: wanted a name of timm's weights, 'resnet50.a1_in1k' say, or "
            "None: a model of the catalog has no weights of its own"
        )
    bare = name.removeprefix("timm/")
    if not timm.is_model_pretrained(bare):
        if bare.partition(":")[0] in {"hf-hub", "local-dir"}:
            raise ValueError(
                f"pretrained={brief(name)}: wanted a name of timm's own weights; a file of weights is for "
                "attneck.models.weights.load_matching, or model.weights in a recipe"
            )
        known = timm.list_pretrained()
        near = suggestion(bare, known if "." in bare else [one.partition(".")[0] for one in known])
        raise ValueError(
            f"timm has no pretrained weights {brief(name)}{near} (timm.list_pretrained() has all)"
        )
    return bare


def normalisation(name: str) -> Normalisation:
    """What images must be normalised with for these weights; raises as `check_name`."""
    import timm

    found: Any = timm.get_pretrained_cfg(check_name(name))
    return tuple(found.mean), tuple(found.std)


def network(name: str, in_chans: int = 3, image_size: int | None = None) -> nn.Module:
    """timm's network with these weights, its classifier too, in evaluation mode.

    Args:
        in_chans: channels of its images.
        image_size: their side in pixels, if another than timm says: a network of one size is made for it.

    Raises:
        ValueError: timm has no such weights, or not for that size; they are not in the cache and the network
            is down; or what came is damaged.
    """
    import timm
    import torch

    bare = check_name(name)
    found: Any = timm.get_pretrained_cfg(bare)
    cached = _cached(found)
    if cached is None:
        _check_network(name, found)
    overlay = {"file": cached} if cached else None
    sized = image_size is not None and found.fixed_input_size and image_size != found.input_size[-1]
    options: dict[str, Any] = {"img_size": image_size} if sized else {}
    try:
        with torch.random.fork_rng(devices=[]):  # what it draws at first is overwritten
            made: nn.Module = timm.create_model(
                bare, pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay, **options
            )
    except Exception as error:  # the network's, the file's, timm's own: of any kind
        raise ValueError(
            f"timm's weights {name} did not load from {cached or 'the network'} "
            f"({type(error).__name__}: {one_line(error, 150)}): try again"
        ) from error
    return made.eval()


def fetch(name: str, in_chans: int = 3) -> Weights:
    """The tensors of `network`, by timm's names; raises as that."""
    import timm

    from attneck.models.weight_files import Weights
    from attneck.models.weights import grids, settings

    theirs, bare = network(name, in_chans), check_name(name)
    found: Any = timm.get_pretrained_cfg(bare)
    weights = Weights(theirs.state_dict())
    weights.settings, weights.grids = settings(theirs), grids(theirs)
    weights.part = f"{found.architecture}.{found.tag}" if found.tag else found.architecture
    return weights


def start(model: nn.Module, name: str, loader: str) -> Loaded:
    """Fill `model` from timm's weights, and let its normalisation follow them.

    Args:
        loader: MODULE:FUNCTION that loads weights into a model of its family.

    Raises:
        ValueError: as `fetch`, or none of them fits.
    """
    own: Any = model
    channels = own.origin.in_chans
    loaded: Loaded = resolve_name(loader)(model, fetch(name, channels))
    check_filled(loaded, name)
    follow(model, *normalisation(name))
    return loaded


def check_filled(loaded: Loaded, name: str) -> None:
    """ValueError where a few tensors fitted by chance: the network is of another family."""
    if len(loaded.unexpected) > len(loaded.taken):
        raise ValueError(
            f"timm's weights {name} fill {len(loaded.taken)} tensors of this network and leave "
            f"{len(loaded.unexpected)} random beside attention and the classifier: take some of its family"
        )


def follow(model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write into `model` what its images are normalised with; a detector does so itself."""
    if is_detector(model):
        model.transform.image_mean, model.transform.image_std = [*mean], [*std]
    if (cfg := getattr(model, "pretrained_cfg", None)) is not None:
        channels = cfg["input_size"][0] if "input_size" in cfg else len(mean)  # a detector names none
        if channels != len(mean):
            mean, std = ((round(sum(each) / len(each), 3),) * channels for each in (mean, std))
        model.pretrained_cfg = cfg | {"mean": mean, "std": std}


def _cached(found: Any) -> str | None:
    """The weights' file in the hub's cache, if it is there."""
    if not found.hf_hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = found.hf_hub_id.partition("@")
    for file in [found.hf_hub_filename] if found.hf_hub_filename else FILES:
        path = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(path, str):
            return path
    return None


def _check_network(name: str, found: Any) -> None:
    """ValueError where the hub may not be asked, or does not answer; any answer is left to timm."""
    if not found.hf_hub_id:
        return
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"timm's weights {name} are not in the cache, and HF_HUB_OFFLINE forbids to fetch them: unset "
            "it, or bring the cache of Hugging Face from elsewhere"
        )
    repository, _, revision = found.hf_hub_id.partition("@")
    url = hf_hub_url(repository, found.hf_hub_filename or FILES[0], revision=revision or None)
    try:
        get_hf_file_metadata(url, timeout=PATIENCE)
    except HfHubHTTPError:
        return
    except Exception as error:  # of the hub's HTTP client, which is another one from version to version
        raise ValueError(
            f"timm's weights {name} are not in the cache, and {url.split('/')[2]} cannot be reached "
            f"({type(error).__name__}: {one_line(error, 80)}): mend the connection, or bring the cache of "
            "Hugging Face from elsewhere"
        ) from None
