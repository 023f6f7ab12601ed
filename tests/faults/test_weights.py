"""Files with weights and configs, damaged, forged, or something else: one line, or exactly what was saved.

`load_matching` stands for `load_weights` and --model.weights, which read files with it.
"""

import hashlib
import io
import json
import os
import pickle
import random
import re
import reprlib
import resource
import struct
import threading
import time
import zipfile
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_cases import LONG, some
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import attneck
from attneck import cli, export, hub
from attneck.layers import MHSA2d
from attneck.models import catalog
from attneck.models.weight_files import LEGACY, digest
from attneck.models.weights import load_matching
from attneck.seal import seal
from attneck.training import checkpoint

SECONDS, MEMORY = (
    10.0,
    400 * 2**20,
)  # what a refusal may take at most; it takes a hundredth, alone on a machine


class Net(nn.Module):
    """Floats, whole numbers, and position tables, which are resampled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.attention = MHSA2d(16, 4)


def filled() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Net().state_dict()


def model() -> Any:
    torch.manual_seed(0)
    return attneck.create_model("cifar_resnet20_bot_bam", 5, depths=[1, 1, 1], stem=4, image_size=16)


def torch_save(value: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def refused(run: Any, *arguments: Any, **options: Any) -> Any:
    """ValueError's line, which must be one, plain and short; or what `run` returns. Bounded either way."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line, result = None, None
    try:
        result = run(*arguments, **options)
    except (ValueError, FileNotFoundError) as error:
        line = str(error)
    assert not LONG or time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    if line is None:
        return result
    assert line.isprintable()
    assert len(line) <= 300
    return line


def into_net(path: Any) -> dict[str, Tensor]:
    net = Net()
    loaded = load_matching(net, path)
    assert str(loaded).isprintable()
    return {name: net.state_dict()[name] for name in loaded.taken}


def by_hub(path: Path) -> dict[str, Tensor]:
    return hub.load(path).state_dict()


def into_model(path: Path) -> dict[str, Tensor]:
    twin: Any = attneck.create_model("cifar_resnet20_bot_bam", 5, depths=[1, 1, 1], stem=4, image_size=16)
    loaded = load_matching(twin, path)
    return {name: twin.state_dict()[name] for name in loaded.taken}


# --- bytes changed ---------------------------------------------------------------------------------------

FORMATS = {
    # name: (the file that is changed, what is loaded, by what, whether each change has to be refused)
    "hub config": ("hub/config.json", "hub", by_hub, True),
    "hub weights": ("hub/model.safetensors", "hub", by_hub, True),
    "hub file": ("hub.safetensors", "hub.safetensors", by_hub, True),
    "hub file as weights": ("hub.safetensors", "hub.safetensors", into_model, False),
    "checkpoint": ("step-00000001.pt", "step-00000001.pt", into_net, True),
    "checkpoint's sum": ("step-00000001.pt.sha256", "step-00000001.pt", into_net, False),
    "torch.save": ("torch.pt", "torch.pt", into_net, False),
    "onnx": ("net.onnx", "net.onnx", export.verify, True),
    "pt2": ("net.pt2", "net.pt2", export.verify, True),
}
WITHOUT_SUM = {
    "torch before 1.6": ("legacy.pt", "legacy.pt", into_net, False),
    "safetensors of others": ("others.safetensors", "others.safetensors", into_net, False),
}


def changes(seed: str) -> list[tuple[str, float, int]]:
    """(kind, where as a share of the file, which bit), half of them in its first or last parts."""
    draw, found = random.Random(seed), []
    for number in range(120):
        where = (draw.random(), draw.random() ** 8, 1 - draw.random() ** 8)[number % 3]
        found.append((("flip", "flip", "flip", "cut", "zeros")[number % 5], where, draw.randrange(8)))
    return found


def changed(data: bytes, kind: str, where: float, bit: int) -> bytes:
    place = min(int(where * len(data)), len(data) - 1)
    if kind == "cut":
        return data[:place]
    other = bytearray(data)
    if kind == "flip":
        other[place] ^= 1 << bit
    else:
        other[place : place + 256] = bytes(len(other[place : place + 256]))
    return bytes(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    hub.save(model(), folder / "hub")
    hub.save(model(), folder / "hub.safetensors")
    checkpoint.save(folder, 1, {"model": filled(), "step": 1})
    torch_save(filled(), folder / "torch.pt")
    torch_save(filled(), folder / "legacy.pt", zipped=False)
    save_file(filled(), folder / "others.safetensors")
    (folder / "net.onnx").write_bytes(seal(bytes(3000), ".onnx"))  # of a zip only the end matters
    (folder / "net.pt2").write_bytes(seal(saved(filled()), ".pt2"))
    return folder


CHANGES = [(name, *change) for name in FORMATS | WITHOUT_SUM for change in changes(name)]


@pytest.mark.parametrize(("name", "kind", "where", "bit"), some(CHANGES, 44))
def test_changed_bytes(name: str, kind: str, where: float, bit: int, whole: Path, tmp_path: Path) -> None:
    file, source, load, always = (FORMATS | WITHOUT_SUM)[name]
    for other in whole.iterdir():  # the rest of it is linked
        if other.is_dir():
            (tmp_path / other.name).mkdir()
        for path in other.iterdir() if other.is_dir() else [other]:
            os.link(path, tmp_path / path.relative_to(whole))
    data = (whole / file).read_bytes()
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(changed(data, kind, where, bit))
    same = changed(data, kind, where, bit) == data
    result = refused(load, tmp_path / source)
    if isinstance(result, str) or same:
        return
    assert not always
    right = model().state_dict() if load is into_model else filled()
    for key, tensor in result.items():
        if name in WITHOUT_SUM:  # all that can be seen there
            assert not tensor.is_floating_point() or tensor.isfinite().all()
        else:
            assert torch.equal(tensor, right[key])


def test_a_sum_beside_is_that_of_the_file_among_others(here: Path) -> None:
    """By the file's whole name, in lines as sha256sum writes them."""
    path = here / "weights.safetensors"
    save_file(filled(), path)
    data = bytearray(path.read_bytes())
    lines = [f"{'0' * 64}  other.safetensors", f"{hashlib.sha256(data).hexdigest()}  {path.name}"]
    path.with_name(f"{path.name}.sha256").write_text("\n".join(lines))
    assert isinstance(refused(into_net, path), dict)
    data[-1] ^= 1
    path.write_bytes(data)
    assert "does not match its SHA-256 in weights.safetensors.sha256" in str(refused(into_net, path))


def test_a_sum_is_of_all_that_is_read() -> None:
    """Of the config, and of each tensor's name, type, shape and bytes; orders are no part of it."""
    state, config = {"a": torch.ones(2), "b": torch.zeros(2)}, {"x": 1, "y": 2}
    whole = digest(state, config)
    assert digest(dict(reversed(state.items())), {"sha256": whole, "y": 2, "x": 1}) == whole
    others = [state | {"b": state["b"].int()}, state | {"b": state["b"][None]}, state | {"b": -state["b"]}]
    others.append({"a": state["a"], "c": state["b"]})
    assert whole not in {digest(state, {"x": 1}), *(digest(other, config) for other in others)}


def test_an_empty_tensor_hides_no_damage_of_others(here: Path) -> None:
    """Its record has the CRC-32 0, as all have where torch writes none."""
    data = bytearray(saved(filled() | {"other": torch.zeros(0)}))
    data[data.index(filled()["conv.weight"].numpy().tobytes())] ^= 1
    (here / "weights.pt").write_bytes(data)
    assert "does not match its CRC-32" in str(refused(into_net, here / "weights.pt"))


# --- tensors that are none, or of another kind -----------------------------------------------------------


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


class Grows:
    """A gigabyte and more, of a few bytes."""

    def __init__(self, size: int = 3 * 10**9) -> None:
        self.size = size

    def __reduce__(self) -> Any:
        return bytearray, (self.size,)


class Doubles:
    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> Any:
        import _codecs

        return _codecs.encode, (Doubles(self.times - 1) if self.times else b"x" * 1000, "hex")


def weight(tensor: Any, name: str = "conv.weight") -> dict[str, Any]:
    return filled() | {name: tensor}


def spoilt(number: float, name: str = "conv.weight") -> dict[str, Tensor]:
    state = filled()
    state[name] = state[name].clone()
    state[name].view(-1)[3] = number
    return state


CONV = (16, 3, 3, 3)
SHARED = torch.zeros(500)
TENSORS: dict[str, tuple[Any, str | None]] = {
    # name: (what is saved, what the line says, None where it loads)
    "float64": (lambda: weight(torch.ones(CONV, dtype=torch.float64)), None),
    "float16": (lambda: weight(torch.ones(CONV, dtype=torch.float16)), None),
    "bfloat16": (lambda: weight(torch.ones(CONV, dtype=torch.bfloat16)), None),
    "Parameter": (lambda: weight(nn.Parameter(torch.ones(CONV))), None),
    "shared storage": (lambda: weight(SHARED[:432].view(CONV)) | {"conv.bias": SHARED[:16]}, None),
    "transposed": (lambda: weight(torch.ones(3, 16, 3, 3).transpose(0, 1)), None),
    "in a model entry": (lambda: {"model": filled(), "step": 3, "optimizer": {"state": [1]}}, None),
    "ordered": (lambda: OrderedDict(filled()), None),
    "more than is wanted": (lambda: filled() | {"other.weight": torch.zeros(2)}, None),
    "huge and expanded": (lambda: filled() | {"other": torch.zeros(1).expand(10**12)}, None),
    "a huge, expanded weight": (lambda: weight(torch.zeros(1).expand(10**6, 10**6, 3, 3)), None),
    "a huge, expanded table": (
        lambda: weight(torch.zeros(1).expand(10**10 + 1, 4), "attention.rel_h"),
        None,
    ),
    "names with control characters": (
        lambda: filled() | {"\x1b[2J\n\r\x07\u202e": torch.zeros(2), "\ud800": torch.zeros(1)},
        None,
    ),
    "a very long name": (lambda: filled() | {"x" * 10**6: torch.zeros(1)}, None),
    "NaN": (lambda: spoilt(float("nan")), "conv.weight is not finite"),
    "infinity": (lambda: spoilt(float("inf"), "norm.running_var"), "norm.running_var is not finite"),
    "minus infinity": (lambda: spoilt(-float("inf"), "attention.rel_w"), "rel_w is not finite"),
    "NaN in float16": (lambda: weight(torch.full(CONV, torch.nan).half()), "is not finite"),
    "float64 beyond float32": (lambda: weight(torch.full(CONV, 1e300, dtype=torch.float64)), "not finite"),
    "int64": (lambda: weight(torch.ones(CONV, dtype=torch.int64)), "is of int64"),
    "int8": (lambda: weight(torch.ones(CONV, dtype=torch.int8)), "is of int8"),
    "bool": (lambda: weight(torch.ones(CONV, dtype=torch.bool)), "is of bool"),
    "float8": (lambda: weight(torch.ones(CONV).to(torch.float8_e4m3fn)), "is of float8_e4m3fn"),
    "complex64": (lambda: weight(torch.ones(CONV, dtype=torch.complex64)), "is of complex64"),
    "a count that is a float": (lambda: weight(torch.tensor(3.0), "norm.num_batches_tracked"), "of float32"),
    "sparse": (lambda: weight(torch.ones(CONV).to_sparse()), "conv.weight is sparse"),
    "sparse rows": (lambda: weight(torch.eye(16).to_sparse_csr()), "conv.weight is sparse"),
    "meta": (lambda: weight(torch.ones(CONV, device="meta")), "on the meta device"),
    "quantised": (
        lambda: weight(torch.quantize_per_tensor(torch.ones(CONV), 0.1, 0, torch.qint8)),
        "is quantised",
    ),
    "nothing": (dict, "holds no state dict (nothing)"),
    "nothing in a model entry": (lambda: {"model": {}}, "holds no state dict (nothing)"),
    "None": (lambda: None, "holds no state dict (NoneType)"),
    "a number": (lambda: 7, "holds no state dict (int)"),
    "a tensor": (lambda: torch.zeros(3), "holds no state dict (Tensor)"),
    "a list": (lambda: [torch.zeros(3)], "holds no state dict (list)"),
    "a dict in a dict": (lambda: {"net": filled()}, "net is of type OrderedDict"),
    "deep dicts": (lambda: deep(400), "holds no state dict"),
    "a weight that is a float": (lambda: weight(1.0), "conv.weight is of type float"),
    "a weight that is a list": (lambda: weight([1.0]), "conv.weight is of type list"),
    "a name that is a number": (lambda: filled() | {7: torch.zeros(1)}, "holds no state dict"),
    "no dimension": (lambda: {"conv.weight": torch.tensor(1.0)}, "none of the 1 tensors given"),
    "of no length": (lambda: {"conv.weight": torch.zeros(0, 3, 3, 3)}, "none of the 1 tensors given"),
    "of another network": (lambda: {"fc.weight": torch.zeros(3, 3)}, "none of the 1 tensors given"),
    "names of control characters alone": (lambda: {"\x1b[2J\n": torch.zeros(1)}, "none of the 1 tensors"),
    "code": (lambda: weight(Runs()), "nothing that would run code"),
    "code beside the weights": (lambda: {"model": filled(), "x": Runs()}, "nothing that would run code"),
    "bytes that grow": (lambda: {"model": filled(), "x": Grows()}, "nothing that would run code"),
    "bytes that double": (lambda: {"model": filled(), "x": Doubles(40)}, "nothing that would run code"),
}
NO_DICT = ("None", "a number", "a tensor", "a list")
IN_MEMORY = [
    name
    for name in TENSORS
    if "code" not in name and "bytes" not in name and "model" not in name and name not in NO_DICT
]


def deep(levels: int) -> dict[str, Any]:
    state: dict[str, Any] = filled()
    for _ in range(levels):
        state = {"net": state}
    return state


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which what is run would leave a trace."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_as_told(result: Any, says: str | None, legacy: bool = False) -> None:
    if says is None:
        assert isinstance(result, dict), result
        assert all(tensor.isfinite().all() for tensor in result.values())
    else:
        assert isinstance(result, str)
        assert says in result or (legacy and "cannot be read" in result)
    assert not Path("ran").exists()


DOORS = [
    *((name, door) for name in TENSORS for door in ("torch.save", "torch before 1.6")),
    *((name, "in memory") for name in IN_MEMORY),
]


@pytest.mark.parametrize(("name", "door"), some(DOORS, 40))
@pytest.mark.filterwarnings("ignore")
def test_kinds_of_tensors(name: str, door: str, here: Path) -> None:
    make, says = TENSORS[name]
    if door == "in memory":
        is_as_told(refused(into_net, make()), says)
        return
    path = here / "weights.pt"
    try:
        torch_save(make(), path, zipped=door == "torch.save")
    except (RuntimeError, NotImplementedError, UnicodeEncodeError) as error:
        pytest.skip(f"torch does not save it: {error}")
    is_as_told(refused(into_net, path), says, legacy=door == "torch before 1.6")


# --- files that hold something else ----------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int = 0, end: int = 4, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def zipped(kind: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def bomb(zeros: int = 2 * 10**7) -> bytes:
    """The right records, packed, with 80 MB of zeros beside the weights."""
    buffer = io.BytesIO()
    torch.save(filled() | {"other": torch.zeros(zeros)}, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    return packed.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 16, 3), torch.zeros(1, 3, 8, 8)), buffer)
    return buffer.getvalue()


def tar() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


DUPLICATE = b'{"conv.bias":%s,"conv.bias":%s}' % ((json.dumps(entry(0, 64, [16])).encode(),) * 2)
CONTENTS: dict[str, Any] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\x80",
    "text": lambda: b"layer1.weight = 3\n" * 10,
    "zeros": lambda: bytes(10_000),
    "ones": lambda: b"\xff" * 10_000,
    "noise": lambda: random.Random(0).randbytes(10_000),
    "an empty zip": zipped,
    "a zip of other things": lambda: zipped(word=b"text"),
    "a zip with a pickle that runs": lambda: zipped(**{"data.pkl": pickle.dumps(Runs(), 2)}),
    "a zip packed": lambda: zipped(zipfile.ZIP_DEFLATED, **{"data.pkl": pickle.dumps({}, 2)}),
    "a zip bomb": bomb,
    "a zip cut to its start": lambda: saved(filled())[:-30],
    "a pickle": lambda: pickle.dumps({"conv.weight": 1}, 2),
    "a pickle that runs": lambda: pickle.dumps(Runs(), 2),
    "a pickle of protocol 5 that runs": lambda: pickle.dumps(Runs(), 5),
    "legacy magic and no more": lambda: saved({}, _use_new_zipfile_serialization=False)[:15],
    "legacy magic and a pickle that runs": lambda: (
        saved({}, _use_new_zipfile_serialization=False)[:15] + pickle.dumps(Runs(), 2)
    ),
    "a storage of 10^14 bytes": lambda: saved(
        {"conv.weight": torch.zeros(77)}, _use_new_zipfile_serialization=False
    ).replace(b"K\x4dN", b"\x8a\x07" + (10**14).to_bytes(7, "little") + b"N"),
    "a later protocol": lambda: saved(filled(), pickle_protocol=5),
    "TorchScript": script,
    "the tar of torch 0.1": tar,
    "a header of 2^63 bytes": lambda: safetensors({}, length=2**63),
    "a header of 90 MB that is not there": lambda: safetensors({}, length=90_000_000),
    "a header past the end": lambda: safetensors({}, length=3),
    "a header that is no JSON": lambda: safetensors(b"{" * 50),
    "a header of deep lists": lambda: safetensors(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a header that is a list": lambda: safetensors([1]),
    "a header of no text": lambda: safetensors(b'{"\xff":1}'),
    "no tensors": lambda: safetensors({}),
    "no tensors but a format": lambda: safetensors({"__metadata__": {"format": "pt"}}),
    "metadata of numbers": lambda: safetensors({"__metadata__": {"config": 7}}),
    "tensors that overlap": lambda: safetensors({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    "two tensors at one place": lambda: safetensors({"a": entry(), "b": entry()}, bytes(4)),
    "a hole": lambda: safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "bytes left over": lambda: safetensors({"a": entry()}, bytes(5)),
    "bytes that are missing": lambda: safetensors({"a": entry()}, bytes(3)),
    "end before start": lambda: safetensors({"a": entry(4, 0)}, bytes(4)),
    "a negative place": lambda: safetensors({"a": entry(-4, 0)}, bytes(4)),
    "a shape of 10^12": lambda: safetensors({"a": entry(0, 4, [10**12])}, bytes(4)),
    "a shape beyond 64 bits": lambda: safetensors({"a": entry(0, 4, [2**40, 2**40])}, bytes(4)),
    "a shape of 10^400": lambda: safetensors({"a": entry(0, 4, [10**400])}, bytes(4)),
    "an unknown type": lambda: safetensors({"a": entry(dtype="F7")}, bytes(4)),
    "a name twice": lambda: safetensors(DUPLICATE, bytes(64)),
    "a name twice at two places": lambda: safetensors(
        DUPLICATE.replace(b"[0, 64]", b"[64, 128]", 1), bytes(128)
    ),
    "NaN by bytes": lambda: safetensors({"conv.bias": entry(0, 64, [16])}, b"\xff" * 64),
    "control characters": lambda: safetensors({"\x1b[2J\n": entry()}, bytes(4)),
}
TWICE = {"a name twice"}  # the same place both times: what is loaded is right


@pytest.mark.parametrize("name", some(CONTENTS, 24))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_files_of_something_else(name: str, suffix: str, here: Path) -> None:
    path = here / f"weights{suffix}"
    path.write_bytes(CONTENTS[name]())
    assert isinstance(refused(into_net, path), dict if name in TWICE else str)
    assert isinstance(refused(by_hub, path), str)
    assert not Path("ran").exists()


@pytest.mark.parametrize("module", [b"__builtin__", b"builtins", b"_codecs"])
@pytest.mark.parametrize("form", ["torch.save", "torch before 1.6"])
def test_what_would_grow_is_refused_unread(form: str, module: bytes, here: Path) -> None:
    made = pickle.dumps(Doubles(1) if module == b"_codecs" else Grows(3), 2)
    made = made.replace(b"c__builtin__\n", b"c" + module + b"\n")
    data = zipped(**{"data.pkl": made}) if form == "torch.save" else LEGACY + made
    (here / "weights.pt").write_bytes(data)
    assert "holds more than weights" in str(refused(into_net, here / "weights.pt"))


def test_what_is_packed_is_refused_as_such(here: Path) -> None:
    (here / "weights.pt").write_bytes(bomb(1000))
    assert "is compressed, or no file of torch.save" in str(refused(into_net, here / "weights.pt"))


PLACES: dict[str, Any] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a device that is empty": lambda path: path.symlink_to("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a file for a folder": lambda path: path.parent.joinpath("file").touch(),
}
NAMES = {
    "": "",
    "NUL": "a\0b.pt",
    "too long": "x" * 5000,
    "control characters": "\x1b[2J\n.pt",
    "folder": ".",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["weights.pt", "model.safetensors"])
def test_what_is_no_file(place: str, name: str, here: Path) -> None:
    PLACES[place](here / name)
    path = here / "file" / name if place == "a file for a folder" else here / name
    assert isinstance(refused(into_net, path), str)
    assert isinstance(refused(by_hub, path), str)
    if name == "model.safetensors":
        (here / "config.json").write_text("{}")
        assert isinstance(refused(by_hub, here), str)


@pytest.mark.parametrize("place", PLACES)
def test_a_config_that_is_no_file(place: str, here: Path) -> None:
    folder = hub.save(model(), here / "folder")
    (folder / "config.json").unlink()
    PLACES[place](folder / "config.json")
    assert isinstance(refused(by_hub, folder), str)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(name: str, here: Path) -> None:
    assert isinstance(refused(into_net, NAMES[name]), str)
    assert isinstance(refused(hub.load, NAMES[name]), str)


# --- forged configs --------------------------------------------------------------------------------------

TINY = "cifar_resnet20_bot_bam"
NUMBERS: list[Any] = [
    10**6,
    10**9,
    2**63,
    10**400,
    -1,
    0,
    float("nan"),
    float("inf"),
    2.5,
    "3",
    True,
    None,
    {},
]
LISTS: list[Any] = [[number] * 3 for number in NUMBERS] + [[], [1], [1] * 10**5, 3, "1,2,3", {"a": 1}]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


FORGED: list[tuple[str, dict[str, Any]]] = [
    *((TINY, {"depths": value}) for value in [*LISTS, nested(50), nested(400)]),
    *((TINY, {"outs": value}) for value in LISTS),
    *((TINY, {"stem": value}) for value in NUMBERS),
    *((TINY, {"heads": value}) for value in NUMBERS),
    *((TINY, {"bam_dilation": value}) for value in NUMBERS),
    *((TINY, {"dropout": value}) for value in [1, 2.0, -0.5, float("nan"), "0.1", None, 10**400]),
    (TINY, {"depths": [512] * 3, "mids": [2**16] * 3, "outs": [2**16] * 3}),
    (TINY, {"depth": 3}),
    (TINY, {"x" * 10**5: 3}),
    (TINY, {"\x1b[2J\n": 3}),
    (TINY, {"block": "x" * 10**6}),
    (TINY, {"block": "\x1b[2J\n"}),
    *(("botnet50", {"depths": [number] * 4}) for number in NUMBERS),
    *(("botnet50", {"widths": [number] * 4}) for number in NUMBERS),
    *(("botnet50", {"base_width": number}) for number in NUMBERS),
    *(("botnet50", {"attend": [1] * number}) for number in (2, 10**5)),
    ("botnet50", {"depths": [512] * 4}),
    ("botnet50", {"widths": [2**16] * 4}),
    *(("cifar_densenet100", {"growth": number}) for number in NUMBERS),
    *(("cifar_densenet100", {"depths": [number] * 3}) for number in NUMBERS),
    ("cifar_densenet100", {"depths": [512] * 3, "growth": 100}),
    *(("vit_base_patch16_384", {"depth": number}) for number in NUMBERS),
    *(("vit_base_patch16_384", {"width": number}) for number in NUMBERS),
    *(("vit_base_patch16_384", {"patch": number}) for number in NUMBERS),
    ("vit_base_patch16_384", {"width": 2**16}),
    *(("mobilenet", {"alpha": number}) for number in NUMBERS if number != 2.5),
    *(("maskrcnn_botnet26_thin", {"channels": number}) for number in NUMBERS),
    *(("maskrcnn_botnet26_thin", {"box_convs": number}) for number in NUMBERS),
    *(("maskrcnn_botnet26_thin", {"depths": [number] * 4}) for number in NUMBERS),
    ("maskrcnn_botnet26_thin", {"box_features": 2**16, "channels": 2**16}),
]
SIZES: list[tuple[str, dict[str, Any]]] = [
    *((TINY, {"image_size": value}) for value in [*NUMBERS, [32], [32, 32, 32], [32, -1], [10**6] * 2, "32"]),
    *((TINY, {"num_classes": value}) for value in [*NUMBERS[1:], 10**8, [5], "5"]),
    *((TINY, {"in_chans": value}) for value in [*NUMBERS, [5], "5"]),
    ("vit_base_patch16_384", {"image_size": 2**16}),
    ("vit_base_patch16_384", {"image_size": 2**12, "patch": 1}),
    ("efficientnet_b0", {"num_classes": 10**7}),
    ("ssd300_vgg16", {"num_classes": 10**7}),
    ("stairnet_vgg16", {"num_classes": 10**7}),
    ("maskrcnn_botnet50", {"num_classes": 10**7}),
    ("squeezenet1_1", {"num_classes": 10**7}),
    ("mobilenet", {"num_classes": 10**7}),
    ("cifar_resnet20", {"num_classes": 10**7, "outs": [16, 32, 2**14], "mids": [16, 32, 2**14]}),
    ("botnte50", {}),
    ("x" * 10**6, {}),
    ("\x1b[2J\n", {}),
]
# What is right: a number that the default takes too, in other words.
RIGHT = [("num_classes", 0), ("num_classes", None), ("image_size", None)]


def is_right(name: str, given: dict[str, Any]) -> bool:
    pairs = [*given.items()]
    return len(pairs) == 1 and any(
        pairs[0] == right and type(pairs[0][1]) is type(right[1]) for right in RIGHT
    )


def label(value: Any) -> str:
    return reprlib.repr(value)


@pytest.mark.parametrize(("name", "options"), some(FORGED, 30), ids=label)
def test_forged_options(name: str, options: dict[str, Any]) -> None:
    """As --model.options are checked, before anything heavy is imported, and as `create_model` does it."""
    said = refused(catalog.find, name, options)
    assert isinstance(said, str)
    assert refused(lambda: attneck.create_model(name, **options)) == said


@pytest.mark.parametrize(("name", "given"), some(SIZES, 20), ids=label)
def test_forged_sizes(name: str, given: dict[str, Any]) -> None:
    if not is_right(name, given):
        assert isinstance(refused(lambda: attneck.create_model(name, **given)), str)


def forge(folder: Path, config: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    """The folder's config for this model, with the right sum."""
    config = json.loads(json.dumps(config))
    config["architecture"] = f"attneck_{name}"
    size = given.get("image_size", 16)
    arguments = {
        "img_size": size if isinstance(size, list) else [size] * 2,
        "in_chans": given.get("in_chans", 3),
    }
    rest = {
        key: value for key, value in given.items() if key not in ("image_size", "in_chans", "num_classes")
    }
    config["model_args"] = arguments | rest
    config["num_classes"] = given.get("num_classes", 5)
    sign(folder, config)


def sign(folder: Path, config: dict[str, Any]) -> None:
    state = load_file(folder / "model.safetensors")
    config["sha256"] = digest(state, config)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save(model(), tmp_path_factory.mktemp("signed") / "folder")


@pytest.mark.parametrize(("name", "given"), some(FORGED + SIZES, 24), ids=label)
def test_forged_configs_with_the_right_sum(
    name: str, given: dict[str, Any], signed: Path, tmp_path: Path
) -> None:
    """The same from a file, whose weights are of another model, too."""
    config = json.loads((signed / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((signed / "model.safetensors").read_bytes())
    forge(tmp_path, config, name, given)
    assert isinstance(refused(by_hub, tmp_path), str)


WORDS: dict[str, Any] = {
    "architecture": [None, 7, [], "x" * 10**6, "attneck_", "resnet50\n", {"a": nested(300)}],
    "num_classes": [None, -1, "5", 5.0, 10**9, [5]],
    "label_names": [["a"], [1] * 5, "abcde", {"a": 1}, ["x"] * 10**5],
    "model_args": [None, [], {}, 7, {"img_size": [16, 16]}, {"in_chans": 3}],
    "pretrained_cfg": [None, {}, 7, {"mean": [1, 2, 3]}],
    "mean": [None, [0.5], [float("nan")] * 3, [float("inf")] * 3, "abc", [[1, 2, 3]], [10**400] * 3],
    "std": [None, [0.5] * 2, [0.0] * 3, [-1.0] * 3, [float("nan")] * 3],
    "crop_pct": [float("nan"), -1.0, 0.0, 1e9, "1"],
    "interpolation": [7, "x" * 10**5],
    "sha256": [None, 7, "", "0" * 64, ["a"]],
    "extra": [1, nested(300), "x" * 10**5],
}


@pytest.mark.parametrize(
    ("key", "number"), some([(key, number) for key in WORDS for number in range(len(WORDS[key]))], 16)
)
def test_forged_words_with_the_right_sum(key: str, number: int, signed: Path, tmp_path: Path) -> None:
    config = json.loads((signed / "config.json").read_text())
    inside = key in ("mean", "std", "crop_pct", "interpolation")
    (config["pretrained_cfg"] if inside else config)[key] = WORDS[key][number]
    (tmp_path / "model.safetensors").write_bytes((signed / "model.safetensors").read_bytes())
    sign(tmp_path, config)
    if key == "sha256":
        config["sha256"] = WORDS[key][number]
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert isinstance(refused(by_hub, tmp_path), str)


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 10,000 digits": b'{"sha256": ' + b"9" * 10_000 + b"}",
    "20 MB": b'{"sha256": "' + b"x" * 20_000_000 + b'"}',
    "a million keys": b"{" + b",".join(b'"k%d":1' % number for number in range(10**6)) + b"}",
    "UTF-16": json.dumps({"sha256": "0"}).encode("utf-16"),
    "no UTF-8": b'{"sha256": "\xff"}',
    "a list": b"[]",
    "a word": b'"architecture"',
    "NaN": b"NaN",
    "no JSON": b"architecture: resnet",
    "of transformers": b'{"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}',
    "of timm": b'{"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": {"mean": [0.4]}}',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("inside", [True, False], ids=["header", "config.json"])
def test_texts_of_configs(name: str, inside: bool, signed: Path, tmp_path: Path) -> None:
    state = load_file(signed / "model.safetensors")
    if inside:
        text = TEXTS[name].decode("utf-8", "replace")
        save_file(state, tmp_path / "one.safetensors", {"format": "pt", "config": text})
        assert isinstance(refused(by_hub, tmp_path / "one.safetensors"), str)
        refused(into_net, tmp_path / "one.safetensors")
    else:
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_bytes(TEXTS[name])
        assert isinstance(refused(by_hub, tmp_path), str)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_signed_weights_that_are_not_finite(number: float, signed: Path, tmp_path: Path) -> None:
    diverged = model()
    with torch.no_grad():
        diverged.conv1.weight.view(-1)[0] = number
    assert "conv1.weight is not finite" in refused(hub.save, diverged, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    config = json.loads((signed / "config.json").read_text())
    save_file(diverged.state_dict(), tmp_path / "model.safetensors")
    sign(tmp_path, config)
    assert "conv1.weight is not finite" in refused(by_hub, tmp_path)


# --- the Hub, which does not answer, or something else ---------------------------------------------------

OTHERS = {"id": "someone/net", "sha": "a" * 40, "siblings": [{"rfilename": "README.md"}]}
ANSWERS: dict[str, Any] = {
    # what the server sends: (status, headers, body), or what it does
    "404": (404, {"X-Error-Code": "RepoNotFound"}, b""),
    "404 of a revision": (404, {"X-Error-Code": "RevisionNotFound"}, b""),
    "401": (401, {}, b""),
    "403": (403, {"X-Error-Code": "GatedRepo"}, b""),
    "429": (429, {"Retry-After": "100"}, b""),
    "500": (500, {}, b""),
    "503": (503, {}, b""),
    "a log-in page": (200, {}, b"<html>log in</html>"),
    "a list": (200, {}, b"[]"),
    "an empty object": (200, {}, b"{}"),
    "nothing": (200, {}, b""),
    "a circle": (302, {"Location": "/api/models/someone/net/revision/main"}, b""),
    "no repository of ours": (200, {}, json.dumps(OTHERS).encode()),
    "hangs up": "close",
    "never answers": "wait",
}


@pytest.mark.parametrize("answer", some([*ANSWERS, "nobody listens", "no address", "offline"], 9))
def test_the_hub_does_not_give_it(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, at once: within seconds, and not asked again and again."""
    from huggingface_hub import constants

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            does = ANSWERS[answer]
            if does == "wait":
                done.wait(30)
            elif does != "close":
                self.send_response(does[0])
                for key, value in ({"Content-Length": str(len(does[2]))} | does[1]).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(does[2])

        do_HEAD = do_GET  # noqa: N815
        log_message = lambda *_: None  # noqa: E731

    done = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = {
            "nobody listens": "http://127.0.0.1:9",
            "no address": "ftp://nothing",
        }.get(answer, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", answer == "offline")
        monkeypatch.setattr(hub, "TIMEOUT", 0.5)
        said = refused(lambda: hub.load("someone/net", cache_dir=tmp_path))
        assert isinstance(said, str)
        assert "someone/net" in said
        done.set()
        server.shutdown()


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cut", "folder", "config"])
def test_attneck_export_refuses_in_one_line(name: str, here: Path, capsys: Any) -> None:
    file = hub.save(model(), here / "one.safetensors")
    if name == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif name == "config":
        file.write_bytes(file.read_bytes().replace(b"attneck_cifar", b"attneck_cifra"))
    else:
        (here / "model").mkdir()
        (here / "model" / "config.json").write_text("{}")
    source = "model" if name == "folder" else "one.safetensors"
    assert cli.main(["export", source, "out.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.match("attneck: .*(damaged|no saved model|cannot be read)", said)
    assert not Path("out.safetensors").exists()
