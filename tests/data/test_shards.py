"""Tar shards in a folder's place: the same order, bits and fingerprint; what is cut or changed is a line."""

import copy
import errno
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attneck import Run, cli, train
from attneck.data import TrainBatches, collate, loader, open_dataset
from attneck.data.readers import shards
from attneck.data.readers.decode import UnreadableImage
from attneck.data.readers.shards import INDEX
from attneck.files import NotWritten
from attneck.training.recipe import Recipe

PER_CLASS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos: three classes in two splits, names with dots and in folders; packed: the same in shards."""
    place = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("a", "a b", "b,é"):
            for number in range(PER_CLASS):
                folder = place / "photos" / split / kind / ("day.1" if number % 2 else "")
                folder.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)
                ending = (".jpg", ".PNG", ".jpeg")[number % 3]
                form = "PNG" if ending == ".PNG" else "JPEG"
                Image.fromarray(pixels).save(folder / f"img.{number}{ending}", form)
    (place / "photos/train/notes.txt").write_text("x")
    shutil.copytree(place / "photos/train", place / "flat")
    assert cli.main(["data", "pack", str(place / "flat"), str(place / "packed flat")]) == 0
    return place


@pytest.fixture
def packed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of some images each."""
    from attneck.data.pack import pack

    pack(made / "photos", tmp_path / "packed", 30_000, lambda items, _: items)
    return tmp_path / "packed"


def test_a_disk_that_fills_names_the_shard(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attneck.data import pack

    added = tarfile.TarFile.addfile

    def full(tar: tarfile.TarFile, *words: Any) -> None:
        if str(tar.name).endswith("000001.tar"):
            raise OSError(errno.ENOSPC, "No space left on device")
        added(tar, *words)

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(NotWritten, match=r"000001\.tar"):
        pack.pack(made / "photos", tmp_path / "packed", 30_000, lambda items, _: items)
    assert not [*tmp_path.iterdir()]


def opened(root: Path, split: str = "train", **options: Any) -> Any:
    return open_dataset("folder", split, root=root, image_size=16, **options)


def test_shards_are_the_folder(made: Path, packed: Path) -> None:
    """Names, labels, fingerprint and every pixel, also from workers and after a start in the middle."""
    assert len(list((packed / "train").glob("*.tar"))) > 3
    for split in ("train", "val"):
        options = {"augment": "inception"} if split == "train" else {}
        folder, other = (opened(root, split, **options) for root in (made / "photos", packed))
        assert (folder.names, folder.classes) == (other.names, other.classes)
        assert folder.labels.tolist() == other.labels.tolist()
        assert folder.fingerprint() == other.fingerprint()
        keys = [(3, index) for index in range(len(folder))]
        assert np.array_equal(folder.pixels(keys), other.pixels(keys))
        assert np.array_equal(np.asarray(folder.whole(4)), np.asarray(other.whole(4)))
    folder, other = (opened(root, augment="randaugment", size=11) for root in (made / "photos", packed))
    for start, workers in ((0, 2), (3, 0)):
        batches = TrainBatches(11, 4, seed=3, start=start, steps=5)
        for one, two in zip(
            loader(folder, batches, 0, collate), loader(other, batches, workers, collate), strict=True
        ):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])


def test_a_share_is_held_out_alike(made: Path) -> None:
    for split in ("train", "val"):
        folder, other = (opened(made / root, split, val_share=0.4) for root in ("flat", "packed flat"))
        assert folder.names == other.names
        assert folder.fingerprint() == other.fingerprint()
        keys = [(0, index) for index in range(len(folder))]
        assert np.array_equal(folder.pixels(keys), other.pixels(keys))


def test_the_tars_are_webdatasets(made: Path, packed: Path) -> None:
    """By tarfile: an image with its own bytes, then its label, under one key of no further dot."""
    names = opened(packed).names
    seen = {}
    for path in sorted((packed / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, _, ending = image.name.partition(".")
                assert label.name == f"{key}.cls"
                assert ending in ("jpg", "png", "jpeg")
                content = tar.extractfile(image).read()  # type: ignore[union-attr]
                seen[int(key)] = content, int(tar.extractfile(label).read())  # type: ignore[union-attr]
    classes = ("a", "a b", "b,é")
    assert sorted(seen) == [*range(3 * PER_CLASS)]
    for number, (content, label) in seen.items():
        assert content == (made / "photos/train" / names[number]).read_bytes()
        assert classes[label] == names[number].partition("/")[0]
    assert [label for _, label in seen.values()] != sorted(label for _, label in seen.values())  # mixed


def test_the_same_folder_makes_the_same_tars(made: Path, packed: Path, tmp_path: Path) -> None:
    from attneck.data.pack import pack

    pack(made / "photos", tmp_path / "again", 30_000, lambda items, _: items)
    files = [path.relative_to(packed) for path in sorted(packed.rglob("*")) if path.is_file()]
    assert all((packed / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert not list(tmp_path.glob(".*"))


def test_every_image_is_checked(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "folder", "--root", str(packed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["images"] == 3 * PER_CLASS
    spoil(packed)
    assert cli.main(["data", "check", "folder", "--root", str(packed)]) == 2
    assert "1 image cannot be read" in capsys.readouterr().err


def spoil(packed: Path, row: int = 7) -> str:
    """An image's bytes become others, its place stays; its path as a message has it."""
    image = opened(packed).paths[row]
    with open(image.shard, "r+b") as file:
        file.seek(image.offset)
        file.write(bytes(image.size))
    return str(image)


def test_an_unreadable_one_stops_or_is_skipped(made: Path, packed: Path, capsys: Any) -> None:
    """Named, counted and capped, and with the same one in its place, as of a folder."""
    bad = spoil(packed)
    with pytest.raises(UnreadableImage, match=r"cannot read \S*\d+\.tar/a b/"):
        opened(packed).pixels([(0, 7)])
    images = pickle.loads(pickle.dumps(opened(packed, on_bad_image="skip")))  # as to a worker
    whole = opened(made / "photos")
    assert np.array_equal(images.pixels([(0, 7)]), whole.pixels([(0, 8)]))
    assert images.skipped.files() == [bad]
    assert capsys.readouterr().err.count("attneck: skipped: folder: cannot read") == 1
    spoil(packed, 12)
    with pytest.raises(UnreadableImage, match="2 of 18 images cannot be read: over 1% is not skipped"):
        images.pixels([(0, 12)])


def cut(folder: Path) -> None:
    path = max(folder.glob("*.tar"))
    path.write_bytes(path.read_bytes()[:700])


def without_one(folder: Path) -> None:
    min(folder.glob("*.tar")).unlink()


def rewritten(folder: Path, change: Any) -> None:
    index = folder / INDEX
    index.write_text(change(index.read_text()))


REFUSED = {
    "a cut shard": (cut, "is cut or no tar: 700 bytes"),
    "a missing shard": (without_one, "000000.tar is missing"),
    "a cut index": (lambda folder: rewritten(folder, lambda text: text[: len(text) // 2]), "is no index"),
    "an index that ends before its last image": (
        lambda folder: rewritten(folder, lambda text: text[: text.rstrip("\n").rindex("\n") + 1]),
        "shards.csv has not all images of",
    ),
    "an index without one in its middle": (
        lambda folder: rewritten(
            folder, lambda text: "".join(text.splitlines(True)[:3] + text.splitlines(True)[4:])
        ),
        "shards.csv has not all images of",
    ),
    "another index": (lambda folder: rewritten(folder, lambda text: "name,split\n"), "is no index"),
    "an index of no images": (
        lambda folder: rewritten(folder, lambda text: text.partition("\n")[0]),
        "is no index",
    ),
    "an index in another order": (
        lambda folder: rewritten(folder, lambda text: text + text.partition("\n")[2]),
        "is no index",
    ),
    "an index that leads out": (
        lambda folder: rewritten(folder, lambda text: text.replace("000000.tar", "../../000000.tar")),
        "is no index",
    ),
    "an index of pictures": (lambda folder: (folder / INDEX).write_bytes(b"\xff\xd8\0"), "is no index"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_whole_is_a_line(packed: Path, case: str) -> None:
    change, says = REFUSED[case]
    change(packed / "train")
    with pytest.raises(ValueError, match=r"^folder: ") as error:
        opened(packed)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300


def test_another_tar_in_a_shards_place_is_noticed(packed: Path) -> None:
    """Also one of the same length that has images at the same places."""
    images = opened(packed)
    image = images.paths[0]
    with tarfile.open(image.shard) as tar:
        parts = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(image.shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in parts:
            member.name = f"9{member.name[1:]}"
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UnreadableImage, match=r"the shard has changed since shards\.csv was written"):
        opened(packed).pixels([(0, 0)])


def test_a_read_in_parts_is_put_together(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mounted bucket may bring it."""
    wanted = opened(packed).pixels([(0, 5)])
    whole = shards.os.pread
    monkeypatch.setattr(
        shards.os, "pread", lambda handle, count, offset: whole(handle, min(count, 999), offset)
    )
    assert np.array_equal(opened(packed).pixels([(0, 5)]), wanted)


def test_no_more_shards_are_open_than_64(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards._shard.cache_info().maxsize == 64
    held: list[int] = []
    close = shards.os.close
    monkeypatch.setattr(shards, "_shard", shards.lru_cache(maxsize=2)(shards._Shard))
    monkeypatch.setattr(shards.os, "close", lambda handle: held.append(handle) or close(handle))
    images = opened(packed)
    images.pixels([(0, index) for index in range(len(images))])
    assert len(held) > 2


def test_what_lies_beside_the_shards_is_said(made: Path, packed: Path, capsys: Any) -> None:
    """Folders of images too: the index has none of them."""
    shutil.copytree(made / "photos/train/a", packed / "train/new")
    (packed / "train/.DS_Store").write_text("x")
    capsys.readouterr()
    assert opened(packed).classes == ("a", "a b", "b,é")
    (said,) = capsys.readouterr().err.splitlines()
    assert "not read in train: new (shards.csv names all images); 1 hidden (.DS_Store)" in said
    assert cli.main(["data", "check", "folder", "--root", str(packed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["left_out"] == 2
    shutil.copytree(packed / "train", tmp := packed / "share/train")
    shutil.copytree(tmp / "new", packed / "share/cat")
    with pytest.raises(ValueError, match="has train with folders in it, and others beside"):
        opened(packed / "share", val_share=0.4)


def test_any_name_is_packed(tmp_path: Path) -> None:
    """Line ends of all kinds, quotes, letters of two and three bytes."""
    names = ["c\rr.png", "l\nf.png", "b\r\n.png", 'q"u,o.png', "é\u3042.png"]
    for name in names:
        (tmp_path / "photos/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos/a" / name)
    assert cli.main(["data", "pack", str(tmp_path / "photos"), str(tmp_path / "packed")]) == 0
    images = [
        opened(tmp_path / root, split, val_share=0.4).names
        for root in ("photos", "packed")
        for split in ("train", "val")
    ]
    assert images[:2] == images[2:]
    assert len(images[0] + images[1]) == 5


def test_what_pack_refuses(
    made: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad/train/a"
    bad.mkdir(parents=True)
    (bad / "\udcff.jpg").write_bytes(b"x")
    for words, says in (
        ([made / "photos", packed], "is there already: give a new folder"),
        ([made / "photos", tmp_path / "no/where"], "make it first"),
        ([packed, tmp_path / "new"], "is packed already"),
        ([tmp_path / "nowhere", tmp_path / "new"], "is not a folder"),
        ([tmp_path / "bad", tmp_path / "new"], "the name is no text: rename it"),
        ([made / "photos", tmp_path / "new", "--shard-mib", "0"], "--shard-mib 0: wanted 1"),
    ):
        capsys.readouterr()
        assert cli.main(["data", "pack", *map(str, words)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert says in said
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_run_has_the_same_weights(made: Path, packed: Path, tmp_path: Path) -> None:
    """On the folder, on shards, and begun on the folder and gone on with on shards."""
    content: dict[str, Any] = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "folder", "root": str(made / "photos"), "image_size": 16, "augment": "inception"},
        "epochs": 2,
        "batch": 6,
    }
    on_folder = train(Recipe.model_validate(content), tmp_path / "one")
    on_shards = copy.deepcopy(content)
    on_shards["data"]["root"] = str(packed)
    assert train(Recipe.model_validate(on_shards), tmp_path / "two").weights == on_folder.weights
    newest = max((tmp_path / "one/checkpoints").glob("step-*"), key=lambda path: path.name)
    for path in (tmp_path / "one/checkpoints").glob(f"{newest.name.partition('.')[0]}*"):
        path.unlink()
    assert cli.main(["train", str(tmp_path / "one"), "--resume", "--data.root", str(packed)]) == 0
    assert Run(tmp_path / "one").summary["weights"] == on_folder.weights
