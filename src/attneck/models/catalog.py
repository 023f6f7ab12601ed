"""The catalog: name → family and options. Rows only; no torch until something is built."""

from __future__ import annotations

import dataclasses
import fnmatch
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attneck.errors import suggestion
from attneck.models.options import CifarResNetOptions, ResNetOptions, override

if TYPE_CHECKING:
    from torch import nn

# The function that builds each family: builder(options, num_classes=..., image_size=(H, W)).
_BUILDERS: dict[type, str] = {
    ResNetOptions: "attneck.models.resnet:build",
    CifarResNetOptions: "attneck.models.cifar:build",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row: the options that make the model, and the image side and classes it was published with."""

    options: ResNetOptions | CifarResNetOptions
    image_size: int = 224
    num_classes: int = 1000


def _rows() -> dict[str, Entry]:
    rows: dict[str, Entry] = {}
    rows["resnet50"] = Entry(ResNetOptions())
    rows["botnet50"] = Entry(ResNetOptions(attend=(1,)))
    rows["botnet_s1_50"] = Entry(ResNetOptions(attend=(1,), c5_stride=1))

    # The lab family: ResNet-20 of the CIFAR experiments, small enough for a CPU.
    lab = CifarResNetOptions()
    for suffix, changes in {
        "": {},
        "_bam": {"bam": "stages"},
        "_se": {"se": True},
        "_bot": {"attend": True},
        "_bot_bam": {"attend": True, "bam": "stages"},
    }.items():
        rows[f"cifar_resnet20{suffix}"] = Entry(dataclasses.replace(lab, **changes), 32, 100)
    return rows


CATALOG = _rows()


def list_models(pattern: str = "*") -> list[str]:
    """The catalog's names that match `pattern` (as in a shell: `*`, `?`, `[…]`), sorted."""
    return sorted(fnmatch.filter(CATALOG, pattern))


def find(name: str, options: dict[str, Any] | None = None) -> Entry:
    """The row called `name`, with `options` put in place of its own.

    Raises:
        ValueError: no such model, no such option, or a value that the option does not take.
    """
    if name not in CATALOG:
        raise ValueError(
            f"no model is called {name!r}{suggestion(name, list(CATALOG))} (attneck list shows them all)"
        )
    entry = CATALOG[name]
    return dataclasses.replace(entry, options=override(entry.options, options or {}, name))


def create_model(
    name: str,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build the model called `name`, freshly initialised.

    Args:
        name: one of `list_models()`.
        num_classes: width of the classifier; 0 for none. The published data set's where None.
        image_size: side or (height, width) in pixels that position tables are made for; the published one
            where None. Any other size works at run time, with the tables resampled.
        options: what the family can be asked for (see `attneck.models.options`).

    Raises:
        ValueError: an unknown name or option (with the nearest known one), or a value out of range.
    """
    entry = find(name, options)
    size = entry.image_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"image_size={image_size!r}: wanted a positive side, or (height, width)")
    classes = entry.num_classes if num_classes is None else num_classes
    if classes < 0:
        raise ValueError(f"num_classes={num_classes}: wanted 0 (no classifier) or more")
    module, _, function = _BUILDERS[type(entry.options)].partition(":")
    model: nn.Module = getattr(import_module(module), function)(
        entry.options, num_classes=classes, image_size=(height, width)
    )
    return model
