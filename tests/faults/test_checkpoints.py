"""A checkpoint that is not what the run wrote is never used: the one before is taken, and a line says why."""

import copy
import hashlib
import os
import socket
from collections import OrderedDict
from functools import partial

import pytest
import torch
from fault_cases import as_nobody, flips, folder_for_all, some
from safetensors.torch import save_file
from small_run import ALONE, Net, Task, digest, recipe, run

from attneck import cli
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.training import checkpoint
from attneck.training.recipe import Recipe
from attneck.training.state import FORMAT, check_fits

WANTED = recipe(ema=0.5)
FITS = partial(check_fits, model=Net(), recipe=WANTED)
NEWEST, BEFORE = "step-00000006.pt", "step-00000005.pt"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a run's two checkpoints."""
    folder = tmp_path_factory.mktemp("written")
    run(folder, WANTED, Task(ALONE))
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


@pytest.fixture
def folder(written, tmp_path):
    """A copy of them, to be harmed."""
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def sum_of(path):
    return path.with_name(f"{path.name}.sha256")


def put(path, content):
    """Content with the right sum."""
    path.write_bytes(content)
    sum_of(path).write_text(f"{hashlib.sha256(content).hexdigest()}\n")


def falls_back(folder, why=""):
    """The one before is taken, and why is said; where that one is harmed as well, a line says so."""
    state, path, passed = checkpoint.load_latest(folder, FITS)
    assert (path.name, state["step"], len(passed)) == (BEFORE, 5, 1)
    assert NEWEST in passed[0]
    assert why in passed[0]
    assert len(passed[0].splitlines()) == 1
    assert len(passed[0].replace(str(folder), "")) <= 250
    (folder / BEFORE).write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be used") as end:
        checkpoint.load_latest(folder, FITS)
    assert len(str(end.value).replace(str(folder), "").splitlines()) == 1


def test_unharmed(folder):
    state, path, passed = checkpoint.load_latest(folder, FITS)
    assert (path.name, state["format"], passed) == (NEWEST, FORMAT, [])


SIZE = 20_000
"""At most; a checkpoint of the small net has some 17,000 bytes."""


@pytest.mark.parametrize(("byte", "bit"), some(flips(SIZE, 1000), 12))
def test_a_flip(folder, byte, bit):
    data = bytearray((folder / NEWEST).read_bytes())
    data[byte % len(data)] ^= 1 << bit
    (folder / NEWEST).write_bytes(data)
    falls_back(folder, "does not match its SHA-256")


@pytest.mark.parametrize(("byte", "bit"), some([(byte, bit) for byte in range(64) for bit in range(8)], 12))
def test_a_flip_in_the_sum(folder, byte, bit):
    data = bytearray(sum_of(folder / NEWEST).read_bytes())
    data[byte] ^= 1 << bit
    sum_of(folder / NEWEST).write_bytes(data)
    falls_back(folder, "does not match its SHA-256")


@pytest.mark.parametrize("share", some([number / 100 for number in range(100)], 4))
def test_cut(folder, share):
    data = (folder / NEWEST).read_bytes()
    (folder / NEWEST).write_bytes(data[: int(share * len(data))])
    falls_back(folder, "does not match its SHA-256")


def replaced(make):
    """The newest checkpoint's file, gone, and something else of its name."""

    def harm(path):
        path.unlink()
        make(path)

    return harm


def bind(path):
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


KINDS = {
    "gone": replaced(lambda path: None),
    "folder": replaced(lambda path: path.mkdir()),
    "loop": replaced(lambda path: path.symlink_to(path.name)),
    "dangling": replaced(lambda path: path.symlink_to("nowhere")),
    "link": replaced(lambda path: path.symlink_to(BEFORE)),
    "moved": lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")),
    "device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "pipe": replaced(lambda path: os.mkfifo(path)),
    "socket": replaced(bind),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["checkpoint", "sum"])
def test_no_file(folder, kind, of):
    path = folder / NEWEST
    KINDS[kind](path if of == "checkpoint" else sum_of(path))
    if of == "checkpoint" and kind == "gone":
        state, path, passed = checkpoint.load_latest(folder, FITS)
        assert (state["step"], passed) == (5, [])
    else:
        falls_back(folder)


@pytest.mark.parametrize("of", ["checkpoint", "sum", "folder"])
def test_no_permission(written, of):
    with folder_for_all() as folder:
        for name, content in written.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o666)
        {"checkpoint": folder / NEWEST, "sum": sum_of(folder / NEWEST), "folder": folder}[of].chmod(0)
        with as_nobody():
            if of == "folder":
                with pytest.raises(UserError, match="cannot be read: Permission denied"):
                    checkpoint.load_latest(folder, FITS)
            else:
                falls_back(folder, "Permission denied")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 64, b"0" * 10**7, b"0" * 64, b"\0" * 64])
def test_a_sum_of_nonsense(folder, content):
    sum_of(folder / NEWEST).write_bytes(content)
    falls_back(folder, "does not match its SHA-256")


class Harm:
    """Code that a reader of pickles would run."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def saved(content, **how):
    return lambda path: torch.save(content, path, **how)


def scripted(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))


NOT_TORCH = {
    "text": lambda path: path.write_text("weights"),
    "empty": lambda path: path.write_bytes(b""),
    "zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "safetensors": lambda path: save_file({"w": torch.ones(2)}, path),
    "script": scripted,
    "code": saved({"step": Harm()}),
    "old code": saved({"step": Harm()}, _use_new_zipfile_serialization=False),
    "number": saved(6),
    "list": saved([1, 2]),
    "tensor": saved(torch.ones(3)),
    "module": saved(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("kind", some(NOT_TORCH, 4))
def test_forged_file(folder, tmp_path_factory, monkeypatch, kind):
    monkeypatch.chdir(folder)
    aside = tmp_path_factory.mktemp("aside") / "file"
    NOT_TORCH[kind](aside)
    put(folder / NEWEST, aside.read_bytes())
    falls_back(folder, "cannot be used: it ")
    assert not (folder / "harm").exists()


def without(name):
    return lambda state: state.pop(name)


def with_(name, value):
    return lambda state: state.update({name: value})


def tensor(where, change, name="conv.weight"):
    """One tensor changed."""

    def harm(state):
        prefix = "module." if where == "average" else ""
        state[where][prefix + name] = change(state[where][prefix + name])

    return harm


def momentum(change):
    def harm(state):
        row = state["optimizer"]["state"][0]
        row["momentum_buffer"] = change(row["momentum_buffer"])

    return harm


def group(change):
    return lambda state: change(state["optimizer"]["param_groups"])


def record(change):
    return lambda state: change(state["history"])


TENSORS = {
    "other shape": lambda t: t[:1],
    "one more axis": lambda t: t[None],
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "int": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "nan": lambda t: t * float("nan"),
    "inf": lambda t: t / 0,
    "meta": lambda t: t.to("meta"),
    "huge": lambda t: torch.zeros(()).expand(10**6, 10**6),
    "none": lambda t: None,
    "list": lambda t: t.tolist(),
    "number": lambda t: 1.0,
}
PARTS = ["step", "sums", "history", "model", "optimizer", "average", "recipe", "facts"]
WRONG = [7.5, "seven", [7], ["a"], {"a": 7}, {7: "a"}, True, torch.ones(2), OrderedDict()]
FORGED = {
    **{f"without {name}": without(name) for name in PARTS},
    **{f"{name} {value!r:.20}": with_(name, value) for name in PARTS for value in WRONG},
    "more": with_("more", 1),
    "key of another type": with_(7, 1),
    **{f"step {n}": with_("step", n) for n in (-1, 0, 5, 7, 10**30)},
    **{f"format {n!r}": with_("format", n) for n in (FORMAT + 1, 99, -1, "1", None, True, 1.0, [1])},
    **{f"model {how}": tensor("model", change) for how, change in TENSORS.items()},
    **{f"average {how}": tensor("average", change) for how, change in TENSORS.items()},
    **{f"momentum {how}": momentum(change) for how, change in TENSORS.items() if how != "none"},
    "model of other names": lambda state: state.update(
        model={f"net.{name}": one for name, one in state["model"].items()}
    ),
    "model one fewer": lambda state: state["model"].pop("fc.bias"),
    "model one more": lambda state: state["model"].update({"fc.scale": torch.ones(1)}),
    "model's names are numbers": lambda state: state["model"].update({1: torch.ones(1)}),
    "no model": lambda state: state["model"].clear(),
    "no average": with_("average", None),
    "average one fewer": lambda state: state["average"].pop("module.fc.bias"),
    "average without its count": lambda state: state["average"].pop("n_averaged"),
    "optimizer one group fewer": group(lambda groups: groups.pop()),
    "optimizer one weight fewer": group(lambda groups: groups[0]["params"].pop()),
    "optimizer other numbers": group(lambda groups: groups[0].update(params=[5, 6])),
    "optimizer groups of nonsense": group(lambda groups: groups.__setitem__(0, 7)),
    "optimizer without groups": lambda state: state["optimizer"].pop("param_groups"),
    "optimizer without state": lambda state: state["optimizer"].pop("state"),
    "optimizer of nothing": lambda state: state["optimizer"]["state"].clear(),
    "optimizer of more weights": lambda state: state["optimizer"]["state"].update({99: {}}),
    "optimizer of names": lambda state: state["optimizer"]["state"].update({"conv": {}}),
    "optimizer's row of nonsense": lambda state: state["optimizer"]["state"].update({0: 7}),
    "history of a later step": record(lambda rows: rows[-1].update(step=7)),
    "history backwards": record(lambda rows: rows.reverse()),
    "history twice": record(lambda rows: rows.extend(copy.deepcopy(rows))),
    "history without a step": record(lambda rows: rows[0].pop("step")),
    "history of a step in words": record(lambda rows: rows[0].update(step="3")),
    "history of words": record(lambda rows: rows[0].update(lr="high")),
    "history of lists": record(lambda rows: rows[0].update(lr=[1])),
    "history of names as numbers": record(lambda rows: rows[0].update({1: 1})),
    "sums of nothing": with_("sums", []),
    "sums that differ": with_("sums", [{"loss": 1.0}, {"top1": 1.0}]),
    "sums of nan": with_("sums", [{"loss": float("nan")}]),
    "sums of words": with_("sums", [{"loss": "low"}]),
    "recipe of a mistake": lambda state: state["recipe"].update(epoch=3),
    "recipe of nonsense": lambda state: state["recipe"].update(batch=-1),
    "classes as a word": with_("facts", {"classes": "cats"}),
    "classes as numbers": with_("facts", {"classes": [1, 2]}),
}
FORGED.pop("history []", None)


@pytest.mark.parametrize("how", some(FORGED, 40))
def test_forged_content(folder, how):
    state = torch.load(folder / NEWEST, weights_only=True)
    FORGED[how](state)
    torch.save(state, folder / "forged")
    put(folder / NEWEST, (folder / "forged").read_bytes())
    falls_back(folder, "cannot be used: ")


def test_without_a_format(folder):
    """As runs of old have it."""
    state = torch.load(folder / NEWEST, weights_only=True)
    del state["format"]
    torch.save(state, folder / "old")
    put(folder / NEWEST, (folder / "old").read_bytes())
    state, path, passed = checkpoint.load_latest(folder, FITS)
    assert (state["step"], path.name, passed) == (6, NEWEST, [])


OTHERS = [
    "step-best.pt",
    "step-00000003-copy.pt",
    "step-00000003.pt.bak",
    "step-3.pt",
    "step-000000003.pt",
    "step-٠٠٠٠٠٠٠٣.pt",
    "step-00000099.pt",  # without its sum
    "STEP-00000099.PT",
    "step-00000099.pt.sha256",
    ".step-best.pt.tmp",
    "best.safetensors",
    "notes.txt",
]
SORTS = {
    "file": lambda path: path.write_text("mine"),
    "link": lambda path: path.symlink_to(BEFORE),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", some(OTHERS, 6))
def test_files_of_others(tmp_path, name, sort):
    """They are there before, while and after a run saves, and are neither removed nor counted."""
    other = tmp_path / "checkpoints" / name
    other.parent.mkdir()
    SORTS[sort](other)
    before = other.lstat()
    run(tmp_path, WANTED, Task(ALONE))
    assert other.lstat().st_ino == before.st_ino
    assert other.is_symlink() or not other.is_file() or other.read_text() == "mine"
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [NEWEST, BEFORE]
    assert len(list(other.parent.iterdir())) == 5
    state, path, _ = checkpoint.load_latest(tmp_path / "checkpoints", FITS)
    assert (state["step"], path.name) == (6, NEWEST)


@pytest.mark.parametrize("step", [7, 99, 99_999_999])
def test_a_newer_one_that_was_passed_over_is_not_counted(tmp_path, step):
    """Else of the whole ones only one would be kept beside it."""
    other = tmp_path / f"checkpoints/step-{step:08d}.pt"
    other.parent.mkdir()
    put(other, b"of somebody else")
    run(tmp_path, WANTED, Task(ALONE))
    assert [path.name for path in checkpoint.checkpoints(other.parent)] == [other.name, NEWEST, BEFORE]
    assert checkpoint.load_latest(other.parent, FITS)[1].name == NEWEST


def test_a_killed_write_s_rest_goes_with_the_next(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".step-00000001.pt.4711.tmp", ".step-00000001.pt.sha256.4711.tmp"):
        (tmp_path / "checkpoints" / name).write_text("half")
    run(tmp_path, WANTED, Task(ALONE))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_goes_on_from_the_one_before(tmp_path, written, capsys):
    """With the same end, in which the one that was harmed is whole again."""
    (tmp_path / "checkpoints").mkdir()
    for name, content in written.items():
        (tmp_path / "checkpoints" / name).write_bytes(content)
    newest = tmp_path / "checkpoints" / NEWEST
    newest.write_bytes(b"harmed")
    run(tmp_path, WANTED, Task(ALONE), resume=True)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("attneck: ")]
    assert said == [f"attneck: {newest} cannot be used: it does not match its SHA-256; going on from step 5"]
    state, _, passed = checkpoint.load_latest(newest.parent, FITS)
    assert (state["step"], passed) == (6, [])
    (tmp_path / "first").write_bytes(written[NEWEST])
    assert digest(state) == digest(torch.load(tmp_path / "first", weights_only=True))


TINY = Recipe.model_validate(
    {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "shapes", "train_size": 64, "val_size": 20, "image_size": 24},
        "batch": 32,
        "epochs": 1,
        "checkpoint_steps": 1,
    }
)
COMMANDS = {
    "train": ["train", "{run}", "--resume"],
    "eval": ["eval", "{run}", "--json"],
    "predict": ["predict", "{run}", "--held-out", "1"],
    "export": ["export", "{run}", "{run}/net.safetensors"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train(TINY, folder)
    return folder


def other_model(state):
    state["model"] = {name: one.flatten() for name, one in state["model"].items()}


HARMS = {
    "bytes": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "pipe": replaced(lambda path: os.mkfifo(path)),
    "other model": other_model,
    "future": with_("format", 99),
    "classes": lambda state: state["facts"]["classes"].pop(),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("all_", [False, True], ids=["newest", "all"])
def test_whatever_reads_them(trained, tmp_path, capsys, harm, command, all_):
    """Falls back with a line, or ends with one and exit code 2."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in checkpoint.checkpoints(folder / "checkpoints")[: None if all_ else 1]:
        if harm in ("bytes", "pipe"):
            HARMS[harm](path)
        else:
            state = torch.load(path, weights_only=True)
            HARMS[harm](state)
            torch.save(state, path)
            put(path, path.read_bytes())
    code = cli.main([word.format(run=folder) for word in COMMANDS[command]])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("attneck: ")]
    if (command, harm, all_) == ("train", "pipe", False):  # nor is it written over, when that step comes
        assert code == 1
        assert "step-00000002.pt could not be written: File exists; what is there was not" in said.pop()
        code = 0
    refused = all_ or (harm == "classes" and command == "train")  # a run's data is compared with its newest
    assert code == (2 if refused else 0)
    assert len(said) == 1, said
    assert len(said[0].replace(str(folder), "")) <= 300
    if refused:
        assert "checkpoints can be used" in said[0] or "classes" in said[0]
    else:
        assert "step-00000002.pt cannot be used: " in said[0]
