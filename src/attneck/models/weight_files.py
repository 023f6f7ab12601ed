"""Reads tensors by name from a file that may be damaged or forged: whole, or one line says why not.

Two kinds are read: safetensors, and what torch.save writes, as zip or in its format before torch 1.6. A
sum is checked wherever there is one: a SHA-256 in the file's header (`attneck.hub`) or beside it
(NAME.sha256, as runs have it), and the CRC-32 of each record of a zip. Nothing that is read can run code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

WANTED = (
    "wanted a safetensors file, or tensors by name as torch.save writes them, and nothing that would run code"
)

CONFIG = "config"
"""The header's entry with the config of `attneck.hub`, and in that the SHA-256 of itself and the weights."""

PARTS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Where training programs keep weights in their files, in timm's order: a moving average comes first. The
last is the name in PyTorch's own tutorials."""

WRAPPERS = re.compile(r"(^(module|_orig_mod)\.|(?<=\.)_orig_mod\.)")
"""What DataParallel puts before each name, and torch.compile before those of what it compiled."""

LONGEST_CONFIG = 2**22  # characters; the names of 20,000 classes are a tenth of it

SHARDED = ".index.json"
"""How the file ends that lists the parts of weights that were saved in several."""

ZIP = b"PK\x03\x04"
LEGACY = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as it was pickled before torch 1.6
)
# No weights need these two, and a few bytes with them make gigabytes: bytearray(10 ** 10), hex of hex …
GROWING = re.compile(rb"c(builtins|__builtin__|_codecs)\n(bytearray|encode)\n")


class Weights(dict[str, Tensor]):
    """Tensors by name.

    Attributes:
        part: the entry of a file that they were in, such as "state_dict_ema"; "" where they are all of it.
        settings: what the layers that they are from compute, by name, where that is known.
        grids: rows and columns of patches that position embeddings are of, by name, where that is known.
    """

    part: str = ""
    settings: Mapping[str, str] = MappingProxyType({})
    grids: Mapping[str, tuple[int, int]] = MappingProxyType({})

    def named(self, tensors: Mapping[str, Tensor]) -> Weights:
        """The same by other names."""
        weights = Weights(tensors)
        weights.part, weights.settings, weights.grids = self.part, self.settings, self.grids
        return weights


def read_tensors(path: Path) -> Weights:
    """The state dict in a file, or in that of its PARTS that comes first, without the names' WRAPPERS.

    Raises:
        ValueError: no regular file, damaged, not of these kinds, or its tensors are not plain ones by name.
        FileNotFoundError: no such file.
    """
    check_one_file(path)
    check_regular(path)
    with readable(path):
        with path.open("rb") as file:
            head = file.read(len(LEGACY))
        _check_sum_beside(path)
        if head.startswith(ZIP):
            found = _from_zip(path)
        elif head == LEGACY:
            found = _from_legacy(path)
        else:
            found, header = _from_safetensors(path)
            _check_sum_inside(found, header)
    return unwrapped(found, str(path))


def unwrapped(found: Any, source: str) -> Weights:
    """`found`, or the first of its PARTS that holds anything, by names without WRAPPERS.

    Raises as `check_plain`.
    """
    known = found if isinstance(found, Mapping) else {}
    parts = [part for part in PARTS if isinstance(known.get(part), Mapping)]
    part = next((part for part in parts if known[part]), parts[0] if parts else "")  # one may hold nothing
    tensors = check_plain(found[part] if part else found, source)
    weights = Weights((_bare(name), tensor) for name, tensor in tensors.items())
    if len(weights) < len(tensors):
        raise ValueError(
            f"{shown(source)} has tensors that differ only in 'module.' or '_orig_mod.': "
            "take one network's out of it"
        )
    weights.part = part
    return weights


def _bare(name: str) -> str:
    while (shorter := WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header's entries of such a file; raises as `read_tensors`."""
    check_regular(path)
    with readable(path):
        return _from_safetensors(path)


def of_torch_save(path: Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    if not path.is_file():  # it may be a pipe, which would be waited for
        return False
    with path.open("rb") as file:
        head = file.read(len(LEGACY))
    return head.startswith(ZIP) or head == LEGACY


def check_one_file(path: Path) -> None:
    """ValueError for the index of a file that was saved in parts."""
    if path.name.endswith(SHARDED) and path.is_file():
        raise ValueError(
            f"{shown(path)} lists the shards of weights, which are not read: put what "
            "safetensors.torch.load_file gives of each together, and save it as one file"
        )


def check_regular(path: Path) -> None:
    """ValueError for what would wait for ever or never end: a pipe, a device; and for a folder.

    FileNotFoundError: nothing is there.
    """
    with readable(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: wanted a file with weights")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is raised about a file is a ValueError with its name, but for FileNotFoundError."""
    try:
        with warnings.catch_warnings():  # torch's, about kinds of tensors that are refused here
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{shown(path)}: there is no such file") from None
    except UnfitError as error:
        raise ValueError(f"{shown(path)} {error}") from None
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{shown(path)} cannot be read ({type(error).__name__}): {WANTED}") from error
        raise ValueError(
            f"{shown(path)} needs {shown(found[1])} to be read: wanted tensors by name and nothing that "
            "would run code; if you trust it, torch.load(…, weights_only=False) it and torch.save its weights"
        ) from error
    except Exception as error:  # damaged bytes make the readers raise any kind
        raise ValueError(f"{shown(path)} cannot be read ({type(error).__name__}): {WANTED}") from error


class UnfitError(Exception):
    """What is wrong with the file whose name stands before."""


def shown(name: object) -> str:
    """A name from a file, or a path, for a message: no control characters, and not long."""
    text = repr(str(name))[1:-1]
    return text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}"


def check_plain(found: Any, source: str) -> dict[str, Tensor]:
    """`found` as tensors by name, dense and with their data; ValueError for anything else."""
    if not isinstance(found, Mapping) or not found:
        what = type(found).__name__ if not isinstance(found, Mapping) else "nothing"
        raise ValueError(f"{shown(source)} holds no state dict ({what}): wanted tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{shown(source)} holds no state dict: {shown(name)} is of type "
                f"{type(tensor).__name__}, wanted tensors by name (its part with the weights, if it has more)"
            )
        kinds = {
            "sparse": tensor.layout != torch.strided,
            "quantised": tensor.is_quantized,
            "nested": tensor.is_nested,
            "on the meta device, without data": tensor.is_meta,
        }
        for kind, is_kind in kinds.items():
            if is_kind:
                raise ValueError(f"{shown(source)}: tensor {shown(name)} is {kind}, wanted a plain one")
    return dict(found)


def digest(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 of a config without its sum, and of every tensor: name, type, shape and bytes."""
    said = {key: value for key, value in config.items() if key != "sha256"}
    sums = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name]
        sums.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        sums.update(array)
    return sums.hexdigest()


def _from_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, file.metadata() or {}


def _from_zip(path: Path) -> Any:
    """What torch.save wrote, after its records have been compared with their sums."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # torch compresses nothing; what does may be a bomb.
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise UnfitError(f"is compressed, or no file of torch.save: {WANTED}")
        # Without set_crc32_options torch writes them all.
        damaged = archive.testzip() if any(record.CRC for record in records) else None
        if damaged is not None:
            raise UnfitError(
                f"is damaged: {shown(damaged)} in it does not match its CRC-32; get the file anew"
            )
        for record in records:
            if record.filename.endswith("data.pkl"):
                _refuse_growing(archive.read(record))
    return _load(path)


def _from_legacy(path: Path) -> Any:
    """What torch.save wrote before torch 1.6."""
    data = path.read_bytes()
    _refuse_growing(data)
    return _load(BytesIO(data))


def _load(file: Path | BytesIO) -> Any:
    """What torch.save wrote, of plain kinds alone; timm's files keep their arguments in a Namespace."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # it has attributes, and runs nothing
        return torch.load(file, map_location="cpu", weights_only=True)


def _refuse_growing(pickled: bytes) -> None:
    if GROWING.search(pickled):
        raise UnfitError(f"holds more than weights: {WANTED}")


def _check_sum_beside(path: Path) -> None:
    """Compare with NAME.sha256 beside it, if there: one or more sums, as runs and sha256sum have them."""
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in beside.read_text("utf-8", "replace").split():
        raise UnfitError(f"does not match its SHA-256 in {shown(beside.name)}: damaged; get it anew")


def _check_sum_inside(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Compare with the sum in the header, where there is one."""
    text = header.get(CONFIG, "{}")
    try:
        config = json.loads(text) if len(text) <= LONGEST_CONFIG else {}
        wanted = config.get("sha256")
        found = None if wanted is None else digest(tensors, config)
    except (ValueError, AttributeError, RecursionError):
        return  # another program's entry of that name
    if found != wanted:
        raise UnfitError("does not match the SHA-256 in its header: damaged; get it anew")
