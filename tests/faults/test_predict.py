"""attneck predict: no input is written to, no result replaced, no photo too many or too large in memory."""

import errno
import json
import os
import subprocess
import sys
import unicodedata
import weakref
from pathlib import Path

import numpy as np
import pytest
from bad_images import whole
from fault_cases import LONG, some
from PIL import Image
from small_run import thin_mask_rcnn

import attneck
from attneck import cli, hub
from attneck.commands import predict as command
from attneck.data.readers import decode as reader
from attneck.errors import RunFailed
from attneck.explain.detections import enlarged
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.training.recipe import Recipe

DETECTOR = {
    "model": thin_mask_rcnn(proposals=20),
    "data": {"name": "shapes", "image_size": 96, "train_size": 4, "val_size": 2},
    "batch": 4,
    "epochs": 1,
}
CLASSIFIER = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "image_size": 24, "train_size": 8, "val_size": 2},
    "batch": 8,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A detector's run and a classifier's."""
    place = tmp_path_factory.mktemp("runs")
    for name, content in (("detector", DETECTOR), ("classifier", CLASSIFIER)):
        runs.train(Recipe.model_validate(content), place / name)
    return place


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A detector's run, to be changed; the current folder is an empty one."""
    monkeypatch.setattr("attneck.explain.detections.LONGEST", 96)
    for name in ("recipe.yaml", "checkpoints"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(trained / "detector" / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "run"


def photo(path, size=(64, 48), form="PNG"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, form)
    return path


def everything(folder):
    """The content of every file under a folder."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def line(capsys):
    said = capsys.readouterr().err
    assert said.startswith("attneck: ")
    assert said.count("\n") == 1, said
    assert len(said) <= 400, said
    return said


INTO = {
    "the current folder": lambda: ".",
    "it by its path": lambda: os.getcwd(),
    "the photos' folder": lambda: "sub",
    "it through a link": lambda: os.symlink("sub", "link") or "link",
    "a folder with a hard link": lambda: os.mkdir("out") or os.link("photo.png", "out/photo.png") or "out",
    "a folder with a link": lambda: os.mkdir("out") or os.symlink("../photo.png", "out/photo.png") or "out",
    "a folder with a link to a JSON": lambda: (
        os.mkdir("out") or os.symlink("../photo.png", "out/predictions.json") or "out"
    ),
    "a folder with a hidden file": lambda: photo("out/.photo.png") and "out",
    "earlier results": lambda: photo("out/photo.png") and "out",
}


@pytest.mark.parametrize("case", INTO)
def test_what_is_there_is_not_written_to(run, capsys, case):
    photo("photo.png")
    photo("sub/photo.png", (32, 32))
    out = INTO[case]()
    before = everything(".")
    assert cli.main(["predict", str(run), "photo.png", "sub/photo.png", "--out", out]) == 2
    assert "nothing that is there is written to" in line(capsys)
    assert everything(".") == before


TWINS = {
    "three folders": ["one/a.png", "sub/a.png", "2-a.png"],
    "numbered before": ["a.png", "a-2.png", "sub/a.png"],
    "numbered after": ["a.png", "sub/a.png", "a-2.png", "sub/a-2.png"],
    "capitals": ["a.png", "A.png", "sub/a.PNG"],
    "endings": ["a.png", "a.jpg", "a.jpeg", "a"],
    "accents": [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")],
    "sharp s": ["straße.png", "STRASSE.png"],
    "links to one file": ["a.png", "linked/a.png", "hard/a.png"],
    "of the JSON's name": ["predictions.json", "predictions.png"],
    "long": ["x" * 251 + ".png", "x" * 250 + "y.png", "é" * 120 + ".png"],
    "no text": [os.fsdecode(b"\xff.png"), os.fsdecode(b"\xfe.png")],
    "dots": [".png", "..png", "a.b.png", "a.c.png"],
}


@pytest.mark.parametrize("case", TWINS)
def test_each_image_has_a_picture_of_its_own(run, case):
    names = TWINS[case]
    for number, name in enumerate(names):
        if name.startswith(("linked/", "hard/")):
            Path(name).parent.mkdir()
            (os.symlink if name.startswith("linked/") else os.link)(os.path.abspath("a.png"), name)
        else:
            photo(name, (40 + number, 32))
    before = everything(".")
    assert cli.main(["predict", str(run), *names, "--out", "../out"]) == 0
    assert everything(".") == before
    images = json.loads(Path("../out/predictions.json").read_text())["images"]
    assert [image["file_name"] for image in images] == names
    assert len({unicodedata.normalize("NFC", image["picture"]).casefold() for image in images}) == len(names)
    for image in images:
        with Image.open(f"../out/{image['picture']}") as picture:
            assert picture.width / picture.height == pytest.approx(image["width"] / image["height"], rel=0.02)
    assert len(os.listdir("../out")) == 1 + len(names)


def test_results_are_never_replaced(run, capsys):
    photo("a.png")
    for _ in range(3):
        assert cli.main(["predict", str(run), "a.png"]) == 0
    folders = [path.name for path in sorted(run.glob("predictions*"))]
    assert folders == ["predictions", "predictions-2", "predictions-3"]
    before = everything(run)
    # An earlier picture, given as an image.
    assert cli.main(["predict", str(run), str(run / "predictions/a.png")]) == 0
    assert all(everything(run)[path] == content for path, content in before.items())
    assert (run / "predictions-4/a.png").is_file()
    assert cli.main(["predict", str(run), "a.png", "--out", "out"]) == 0
    before = everything("out")
    capsys.readouterr()
    assert cli.main(["predict", str(run), "a.png", "--out", "out"]) == 2
    assert "--out out has files in it" in line(capsys)
    assert everything("out") == before


OUTS = {
    "a file": "a.png",
    "under a file": "a.png/out",
    "under /proc": "/proc/attneck/out",
    "a NUL": "o\0ut",
    "too long": "x" * 300,
    "a link to nothing": "nothing",
    "a link to itself": "itself",
}


@pytest.mark.parametrize("case", OUTS)
def test_a_folder_that_cannot_be(run, capsys, case):
    photo("a.png")
    os.symlink("../nowhere/deep", "nothing")
    os.symlink("itself", "itself")
    before = everything(".")
    assert cli.main(["predict", str(run), "a.png", "--out", OUTS[case]]) == 2
    assert "give" in line(capsys)
    assert everything(".") == before


def test_an_empty_folder_is_taken(run):
    photo("a.png")
    os.mkdir("out")
    assert cli.main(["predict", str(run), "a.png", "--out", "out"]) == 0
    assert sorted(os.listdir("out")) == ["a.png", "predictions.json"]


REFUSED = {
    "a folder without images": (["empty"], "empty is a folder without images"),
    "a pattern without": (["*.jpeg"], "*.jpeg: no image has such a name"),
    "one in a folder too": (["a.png", "."], "a.png is given twice"),
    "classes of objects": (["a.png", "--top-k", "2"], "which have one class each"),
    "no class": (["a.png", "--top-k", "0"], "--top-k 0: give how many"),
    "a missing file": (["nowhere.png"], "cannot read nowhere.png (No such file"),
    "nothing": ([], "no image given"),
    "one twice": (["a.png", "a.png"], "a.png is given twice"),
    "one twice by its path": (["a.png", "../here/a.png"], "is given twice"),
    "a NUL": (["a\0.png"], "a NUL character"),
    "too large": (["a.png", "--max-pixels", "3071"], "a.png has over 3,071 pixels"),
    "no pixels": (["a.png", "--max-pixels", "0"], "--max-pixels 0"),
    "a good one and a bad one": (["a.png", "bad.png"], "cannot read bad.png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_line_before_anything_is_made(run, capsys, case):
    photo("a.png")
    Path("bad.png").write_bytes(b"no picture" if "bad.png" in REFUSED[case][0] else whole("PNG"))
    os.mkdir("empty")
    words, says = REFUSED[case]
    assert cli.main(["predict", str(run), *words]) == 2
    assert says in line(capsys)
    assert not [*run.glob("predictions*")]


@pytest.mark.parametrize("kind", ["detector", "classifier"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_image_cut_short_stops_with_what_was_found_before(run, trained, capsys, position, kind):
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        photo(name)
    bad = Path(names[position])
    bad.write_bytes(bad.read_bytes()[:4000])
    assert cli.main(["predict", str(trained / kind), *names, "--out", "out"]) == 2
    said = line(capsys)
    assert f"cannot read {bad}" in said
    if not position:
        assert not Path("out").exists()
        return
    assert f"of {position} before it what was found is in out" in said
    found = json.loads(Path("out/predictions.json").read_text())
    assert [image["file_name"] for image in found["images"]] == names[:position]
    pictures = names[:position] if kind == "detector" else ["predictions.csv", "contact-sheet.png"]
    assert sorted(os.listdir("out")) == sorted([*pictures, "predictions.json"])


def test_an_interrupt_leaves_what_was_found_before(trained, tmp_path, monkeypatch):
    """From Python; a Ctrl-C of the command line ends the process."""
    monkeypatch.chdir(tmp_path)
    decoded = reader.decode_small

    def interrupted(path, *given):
        if Path(path).name == "b.png":
            raise KeyboardInterrupt
        return decoded(path, *given)

    monkeypatch.setattr(reader, "decode_small", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.predict(trained / "classifier", (photo("a.png"), photo("b.png")), out=Path("out"))
    assert len(json.loads(Path("out/predictions.json").read_text())["images"]) == 1


def test_a_run_s_end_leaves_what_was_found_before(trained, tmp_path, monkeypatch, capsys):
    """A disk that fails, or memory that gives out, at the second photo."""
    monkeypatch.chdir(tmp_path)
    decoded = reader.decode_small

    def failing(path, *given):
        if Path(path).name == "b.png":
            raise RunFailed("b.png: Input/output error", 7)
        return decoded(path, *given)

    monkeypatch.setattr(reader, "decode_small", failing)
    words = [str(photo("a.png")), str(photo("b.png")), "--out", "out"]
    assert cli.main(["predict", str(trained / "classifier"), *words]) == 7
    assert "Input/output error; of 1 before it what was found is in out" in line(capsys)
    assert len(json.loads(Path("out/predictions.json").read_text())["images"]) == 1


def test_a_full_disk_is_one_line(run, capsys, monkeypatch):
    photo("a.png")

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("attneck.files.write_atomic", full)
    assert cli.main(["predict", str(run), "a.png", "--out", "out"]) == 1
    assert "No space left on device; make room" in line(capsys)


@pytest.mark.parametrize(("kind", "beside"), [("detector", True), ("classifier", False)])
def test_one_photo_at_a_time_is_in_memory(trained, run, monkeypatch, kind, beside):
    count = 4
    names = [str(photo(f"{number}.png")) for number in range(count)]
    alive, most = [], []

    def spy(*words):
        image, size = decode_small(*words)
        alive.append(weakref.ref(image))
        most.append(sum(one() is not None for one in alive))
        return image, size

    decode_small = reader.decode_small
    monkeypatch.setattr(reader, "decode_small", spy)
    words = ["predict", str(trained / kind), *names, "--out", "out"]
    assert cli.main(words + ["--beside", str(trained / kind)] * beside) == 0
    assert len(most) == count
    assert max(most) <= 2  # one, and the one before


def test_held_out_images_are_read_one_at_a_time(trained):
    samples = Run(trained / "detector").samples(2)
    assert len(samples) == 2
    assert samples[1].image is not samples[1].image
    assert [sample.file for sample in samples] == [samples[0].file, samples[1].file]


LARGE = [(form, mode) for form in ("JPEG", "PNG", "TIFF") for mode in ("RGB", "L")]


@pytest.mark.parametrize(("form", "mode"), some(LARGE, 2))
def test_a_large_photo_is_made_smaller_and_answered_in_its_own_pixels(run, capsys, monkeypatch, form, mode):
    monkeypatch.setattr(command, "most_pixels", lambda runs: 1 << 15)
    size = (1500, 750)
    Image.effect_noise((60, 30), 90).convert(mode).resize(size).save("large.photo", form)
    assert cli.main(["predict", str(run), "large.photo", "--out", "out", "--min-score", "0"]) == 0
    said = capsys.readouterr().err
    assert said == "attneck: photos made smaller for the model: 1 (seen_as in out/predictions.json)\n"
    found = json.loads(Path("out/predictions.json").read_text())
    (image,) = found["images"]
    assert (image["width"], image["height"]) == size
    width, height = image["seen_as"]
    assert (1 << 15) * 0.98 < width * height <= 1 << 15
    assert width / height == pytest.approx(2, rel=0.02)
    with Image.open("out/large.png") as picture:
        assert picture.size == (width, height)
    (rows,) = [one["detections"] for one in found["runs"]]
    assert rows
    assert max(row["bbox"][0] + row["bbox"][2] for row in rows) > 2 * width
    for row in rows:
        x, y, w, h = row["bbox"]
        assert 0 <= x <= x + w <= size[0] * 1.001
        assert 0 <= y <= y + h <= size[1] * 1.001
        assert row["segmentation"]["size"] == [750, 1500]


def test_a_smaller_copy_is_the_photo(tmp_path):
    """The same as decoded whole and resized, but for JPEG's own smaller decoding."""
    rows, columns = np.mgrid[0:900, 0:1200]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) // 9 % 256], axis=2).astype(np.uint8)
    for form, near in (("PNG", 0), ("JPEG", 3), ("BMP", 0)):
        Image.fromarray(pixels).save(tmp_path / "a", form, **({"quality": 95} if form == "JPEG" else {}))
        whole = reader.decode(str(tmp_path / "a"), "test")
        image, size = reader.decode_small(str(tmp_path / "a"), "test", 30_000)
        assert size == whole.size == (1200, 900)
        assert image.width * image.height <= 30_000
        wanted = np.asarray(whole.resize(image.size, Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(wanted - np.asarray(image)).mean() <= near, form
        same, _ = reader.decode_small(str(tmp_path / "a"), "test", 1200 * 900)
        assert same.tobytes() == whole.tobytes()


def test_masks_are_enlarged_by_their_nearest_pixel():
    from faster_coco_eval.core import mask as rle

    draw = np.random.default_rng(0)
    for w, h, W, H in ((5, 4, 50, 40), (7, 3, 50, 31), (1, 1, 9, 7), (12, 9, 13, 9)):
        for share in (0.0, 0.5, 1.0):
            small = (draw.random((h, w)) < share).astype(np.uint8)
            runs = rle.encode(np.asfortranarray(small[..., None]))[0]
            row = {
                "bbox": [1, 1, 2, 2],
                "segmentation": {"size": [h, w], "counts": runs["counts"].decode()},
                "score": 0.5,
            }
            (large,) = enlarged([row], (w, h), (W, H))
            assert large["bbox"] == [round(side, 2) for side in (W / w, H / h, 2 * W / w, 2 * H / h)]
            found = rle.decode(rle.segmToRle(large["segmentation"], W, H))
            wanted = small[np.arange(H) * h // H][:, np.arange(W) * w // W]
            np.testing.assert_array_equal(found, wanted)


PEAK = """
import resource, sys
import attneck
from attneck import cli, hub
code = cli.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, file=sys.stderr)
sys.exit(code)
"""


BYTES = [("JPEG", "RGB", 0.5), ("PNG", "L", 1.3), ("PNG", "RGB", 4.3)]


@pytest.mark.skipif(not LONG, reason="the long form: photos of 169 million pixels")
@pytest.mark.parametrize("kind", ["detector", "classifier"])
@pytest.mark.parametrize(("form", "mode", "bytes_a_pixel"), BYTES)
def test_memory_is_bounded(trained, tmp_path, kind, form, mode, bytes_a_pixel):
    """Over what a photo of the size that the model sees takes: what Pillow needs to decode the file."""
    noise, seen = Image.effect_noise((100, 100), 90).convert(mode), 1024 if kind == "detector" else 4096
    noise.resize((13_000, 13_000)).save(tmp_path / "large", form)
    noise.resize((seen, seen)).save(tmp_path / "small", form)
    peaks = []
    for name in ("small", "large"):
        words = ["predict", str(trained / kind), str(tmp_path / name), "--out", str(tmp_path / f"{name}-out")]
        program = [sys.executable, "-c", PEAK, *words]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        peaks.append(int(done.stderr.splitlines()[-1]))
    print(form, mode, kind, peaks)
    assert peaks[1] - peaks[0] <= bytes_a_pixel * 13_000**2 / 2**20 + 200


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_a_saved_model_finds_what_its_run_finds(trained, tmp_path, monkeypatch, kind):
    """Also where its classes have no names, and then by their number; into a folder of its own, here."""
    monkeypatch.chdir(tmp_path)
    photo("photo.png", (70, 40))
    run = Run(trained / kind)
    hub.save(run, "saved")
    network = hub.load("saved")
    network.pretrained_cfg = {
        key: value for key, value in network.pretrained_cfg.items() if key != "label_names"
    }
    hub.save(network, "nameless.safetensors")
    words = ["photo.png", "--min-score", "0.01"]
    assert cli.main(["predict", str(run.folder), *words, "--out", "wanted"]) == 0
    assert cli.main(["predict", "saved", *words, "--beside", "nameless.safetensors"]) == 0
    (wanted,) = json.loads(Path("wanted/predictions.json").read_text())["runs"]
    found, nameless = json.loads(Path("predictions/predictions.json").read_text())["runs"]
    assert wanted["detections"]
    assert found["detections"] == wanted["detections"]
    assert (found["run"], found["step"], nameless["run"]) == ("saved", None, "nameless.safetensors")
    numbers = {name: f"class {number}" for number, name in enumerate(run.facts["classes"])}
    for row, other in zip(nameless["detections"], found["detections"], strict=True):
        assert row == other | {"category": numbers[other["category"]]}
    assert cli.main(["predict", "saved", *words]) == 0
    assert Path("predictions-2/predictions.json").exists()


OF_RUNS = {
    "random weights": (["cifar_resnet20", "photo.png"], "its weights would be random"),
    "no images": (["saved", "--held-out", "2"], "is a saved model, without images"),
    "no checkpoints": (["saved", "photo.png", "--checkpoint", "best"], "--checkpoint is about runs"),
    "no classifier": (["headless", "photo.png"], "has no classifier"),
    "nothing": (["nowhere", "photo.png"], "no model or run is called 'nowhere'"),
}


@pytest.mark.parametrize("case", OF_RUNS)
def test_what_predict_cannot_ask_of_a_model(trained, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    photo("photo.png")
    hub.save(Run(trained / "classifier"), "saved")
    hub.save(attneck.create_model("cifar_resnet20", num_classes=0), "headless")
    words, said = OF_RUNS[case]
    before = everything(".")
    assert cli.main(["predict", *words]) == 2
    assert said in line(capsys)
    assert everything(".") == before
