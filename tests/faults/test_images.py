"""Files that only have an image's name: a line with the path, wherever met; odd images are read right."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
import yaml
from bad_images import BAD, FORMATS, GOOD, SMOOTH, whole
from fault_cases import as_nobody, flips, folder_for_all, some
from PIL import Image

from attneck import cli
from attneck.data.readers.decode import decode

TINY = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "folder", "image_size": 24},
    "batch": 8,
    "epochs": 1,
}
SIDES = {split: [(split, kind, number) for kind in "ab" for number in range(4)] for split in ("train", "val")}


class Hangs(BaseException):
    """Not an Exception: it must not be taken for what a decoder raised."""


@pytest.fixture(autouse=True)
def limit():
    """Half a minute for each case: a FIFO that is opened hangs for ever."""

    def late(number, frame):
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes; do not change it."""
    root = tmp_path_factory.mktemp("photos")
    for split, kind, number in SIDES["train"] + SIDES["val"]:
        (root / split / kind).mkdir(parents=True, exist_ok=True)
        (root / split / kind / f"{number}.png").write_bytes(whole("PNG"))
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run on it."""
    place = tmp_path_factory.mktemp("runs")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["train", str(place / "tiny.yaml"), "--out", str(place / "run"), "--data.root", str(photos)]
    assert cli.main(words) == 0
    return place


@pytest.fixture
def spoilt(photos, tmp_path):
    """A copy, and a function that puts a bad file into it."""
    shutil.copytree(photos, tmp_path / "photos")

    def spoil(write, split):
        path = tmp_path / "photos" / split / "b" / "0.png"
        path.unlink()
        write(path)
        return path

    return tmp_path / "photos", spoil


def refused(words, capsys, path, after=""):
    """Exit code 2, and one line on stderr that names the file, perhaps after a line that has `after`."""
    capsys.readouterr()
    code = cli.main([*map(str, words)])
    said = capsys.readouterr().err
    if after and said.count("\n") == 2:  # what is no file at all is found before
        first, said = said.split("\n", 1)
        assert after in first
    assert code == 2, said
    assert said.count("\n") == 1, said
    assert len(said) <= 300 + len(str(path)), said
    assert path.name in said, said


@pytest.mark.parametrize("case", BAD)
def test_no_image(case, tmp_path):
    path = tmp_path / "a.png"
    BAD[case](path)
    with pytest.raises(ValueError, match=r"^test: .*a\.png") as error:
        decode(str(path), "test")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300


SAYS = {"empty": "it is empty", "fifo": "it is no regular file", "folder": "it is a folder"}


@pytest.mark.parametrize("case", SAYS)
def test_what_is_no_file_with_bytes_is_called_so(case, tmp_path):
    BAD[case](tmp_path / "a.png")
    with pytest.raises(ValueError, match=SAYS[case]):
        decode(str(tmp_path / "a.png"), "test")


@pytest.mark.parametrize("case", some(BAD, 9))
def test_training(case, trained, spoilt, tmp_path, capsys):
    root, spoil = spoilt
    path = spoil(BAD[case], "train")
    refused(["train", trained / "tiny.yaml", "--out", tmp_path / "run", "--data.root", root], capsys, path)


@pytest.mark.parametrize("case", some(BAD, 3))
def test_training_with_workers(case, trained, spoilt, tmp_path, capsys):
    root, spoil = spoilt
    path = spoil(BAD[case], "train")
    words = ["train", trained / "tiny.yaml", "--out", tmp_path / "run", "--data.root", root]
    refused([*words, "--data.workers", "1"], capsys, path)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_disk_that_fails_is_no_bad_image(workers, trained, photos, tmp_path, capsys, monkeypatch):
    """No other image takes its place, and the run that goes on when it is back ends as if left alone."""
    late = photos / "train/b/2.png"
    whole_open = Image.open

    def failing(file, *others, **named):
        if file == str(late):
            raise OSError(errno.EIO, "Input/output error")
        return whole_open(file, *others, **named)

    words = ["train", trained / "tiny.yaml", "--data.root", photos, "--data.workers", workers]
    words = [*map(str, words), "--data.on-bad-image", "skip", "--checkpoint-steps", "1", "--batch", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing)
        assert cli.main([*words, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == (
        f"attneck: folder: {late} was not read (Input/output error): mend the disk or its mount, and run the "
        "command again (a run: with --resume)"
    )
    assert not any("skipped" in line for line in said)
    resume = ["--resume"] if (tmp_path / "run/checkpoints").is_dir() else []
    assert cli.main([*words, "--out", str(tmp_path / "run"), *resume]) == 0
    assert cli.main([*words, "--out", str(tmp_path / "alone")]) == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "alone"))
    assert one["weights"] == two["weights"]


@pytest.mark.parametrize("case", some(BAD, 5))
def test_evaluation(case, trained, spoilt, capsys):
    root, spoil = spoilt
    words = ["eval", trained / "run", "--data.root", root]
    refused(
        words, capsys, spoil(BAD[case], "val"), after="the data has changed: held-out images: other sizes"
    )


@pytest.mark.parametrize("case", some(BAD, 5))
def test_data_check_refuses_what_train_refuses(case, spoilt, capsys):
    root, spoil = spoilt
    refused(["data", "check", "folder", "--root", root], capsys, spoil(BAD[case], "val"))


@pytest.mark.parametrize("case", some(BAD, 9))
def test_prediction(case, trained, tmp_path, capsys):
    path = tmp_path / "a.png"
    BAD[case](path)
    refused(["predict", trained / "run", path, "--out", tmp_path / "out"], capsys, path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", GOOD)
def test_odd_images_are_read_as_they_are(case, tmp_path, recwarn):
    data, wanted = GOOD[case]
    (tmp_path / "a.png").write_bytes(data)
    found = np.asarray(decode(str(tmp_path / "a.png"), "test")).astype(int)
    if wanted is None:  # a palette of 256 colours
        assert np.abs(found - SMOOTH).mean() < 8
    else:
        np.testing.assert_array_equal(found, wanted)
    assert not recwarn.list


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bits_are_read_or_refused(form, tmp_path, recwarn):
    path = tmp_path / "a.png"
    data = whole(form)
    for byte, bit in some(flips(len(data), 150), 25) + [(byte, bit) for byte in range(20) for bit in (0, 6)]:
        flipped = bytearray(data)
        flipped[byte] ^= 1 << bit
        path.write_bytes(flipped)
        found = read_or_refusal(path)
        if isinstance(found, str):
            assert "\n" not in found
            assert len(found) <= 300
        else:
            assert found.mode == "RGB"
            assert min(found.size) > 0
    assert not recwarn.list


def read_or_refusal(path):
    try:
        return decode(str(path), "test")
    except ValueError as error:
        return str(error)


def test_no_permission():
    with folder_for_all() as folder:
        (folder / "a.png").write_bytes(whole("PNG"))
        (folder / "a.png").chmod(0)
        says = r"^test: cannot read .*a\.png \(Permission denied\)"
        with as_nobody(), pytest.raises(ValueError, match=says):
            decode(str(folder / "a.png"), "test")


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31m.png", os.fsdecode(b"\xff.png"), "é" * 100 + ".png"])
def test_names_that_break_a_line(name, trained, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(b"no picture")
    assert cli.main(["predict", str(trained / "run"), str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    path.write_bytes(whole("PNG"))
    assert cli.main(["predict", str(trained / "run"), str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    said.encode()
    assert said.count("\n") == 4  # it, and three files
    assert "\x1b" not in said
