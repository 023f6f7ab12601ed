"""A run that goes on, or is scored, on data or processes other than those it was started on.

No label moves without a word: what differs is said, and refused unless it is accepted.
"""

import json
import re
import shutil
from unicodedata import normalize

import numpy as np
import pytest
import torch
from fault_cases import some
from forked import as_ranks
from PIL import Image
from small_run import broken_off_after

from attneck import cli
from attneck.data import open_detection
from attneck.data.fingerprint import changes, of_arrays, relabelled, renames, shortened
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.training import checkpoint
from attneck.training.distributed import World
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import load_recipe

TINY = {
    "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "folder", "root": "photos", "image_size": 24},
    "batch": 8,
    "epochs": 2,
    "checkpoint_steps": 1,
}
CLASSES = ("cat", "dog", "owl")
STEP = 4
"""Where the run was broken off: one step into its second epoch of three."""


def photo(path, number):
    """An image whose file has a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (24 + number % 5, 24 + number // 5 % 7, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Photos of three classes, eight to train on and four held out of each, and a run that was broken off."""
    place = tmp_path_factory.mktemp("otherwise")
    numbers = iter(range(100))
    for name in CLASSES:
        for split, count in (("train", 8), ("val", 4)):
            for file in range(count):
                photo(place / "photos" / split / name / f"{file}.png", next(numbers))
    whole = checkpoint.save

    def save(folder, step, *words):
        whole(folder, step, *words)
        if step == STEP:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            runs.train(Recipe.model_validate(TINY), "run")
    return place


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def in_both(change):
    def both(photos):
        for split in ("train", "val"):
            change(photos / split)

    return both


def rotate(split):
    swap(split / "cat", split / "dog")
    swap(split / "dog", split / "owl")


# What is done to the photos, what is said of it, and what `eval` makes of it: "same", "said" or "refused".
IMAGES = {
    "one more": (lambda p: photo(p / "train/cat/8.png", 200), "training images: 1 more in 'cat'", "same"),
    "three more": (
        lambda p: [photo(p / f"train/{name}/9.png", 200) for name in CLASSES],
        "training images: 1 more in 'cat', 1 more in 'dog', 1 more in 'owl'",
        "same",
    ),
    "one fewer": (lambda p: (p / "train/owl/3.png").unlink(), "training images: 1 fewer in 'owl'", "same"),
    "another": (lambda p: photo(p / "train/dog/0.png", 77), "training images: other sizes in 'dog'", "same"),
    "one renamed": (
        lambda p: (p / "train/dog/0.png").rename(p / "train/dog/00.png"),
        "training images: other names in 'dog'",
        "same",
    ),
    "two swapped": (
        lambda p: swap(p / "train/cat/1.png", p / "train/dog/1.png"),
        "training images: other sizes in 'cat', other sizes in 'dog'",
        "same",
    ),
    "two of a class swapped": (
        lambda p: swap(p / "train/cat/1.png", p / "train/cat/2.png"),
        "training images: other sizes in 'cat'",
        "same",
    ),
    "one moved": (
        lambda p: (p / "train/cat/1.png").rename(p / "train/dog/8.png"),
        "training images: 1 fewer in 'cat', 1 more in 'dog'",
        "same",
    ),
    "all of two classes swapped": (
        lambda p: swap(p / "train/cat", p / "train/dog"),
        "training images: 'cat' has those that 'dog' had, 'dog' has those that 'cat' had",
        "same",
    ),
    "one more held out": (
        lambda p: photo(p / "val/cat/8.png", 200),
        "held-out images: 1 more in 'cat'",
        "said",
    ),
    "one fewer held out": (
        lambda p: (p / "val/owl/3.png").unlink(),
        "held-out images: 1 fewer in 'owl'",
        "said",
    ),
    "another held out": (
        lambda p: photo(p / "val/dog/0.png", 200),
        "held-out images: other sizes in 'dog'",
        "said",
    ),
    "two swapped held out": (
        lambda p: swap(p / "val/cat/1.png", p / "val/dog/1.png"),
        "held-out images: other sizes in 'cat', other sizes in 'dog'",
        "said",
    ),
    "two classes swapped held out": (
        lambda p: swap(p / "val/cat", p / "val/dog"),
        "held-out images: 'cat' has those that 'dog' had, 'dog' has those that 'cat' had",
        "refused",
    ),
    "two classes swapped": (
        in_both(lambda split: swap(split / "cat", split / "owl")),
        "training images: 'cat' has those that 'owl' had, 'owl' has those that 'cat' had",
        "refused",
    ),
    "three classes in a ring": (
        in_both(rotate),
        "training images: 'cat' has those that 'dog' had, 'dog' has those that 'owl' had",
        "refused",
    ),
    "everything else": (
        lambda p: [photo(path, 300 + i) for i, path in enumerate(sorted(p.rglob("*.png")))],
        "training images: other sizes in 'cat'",
        "said",
    ),
}
NAMES = {
    "a class renamed": (
        in_both(lambda split: (split / "cat").rename(split / "ape")),
        "class 'cat' is now 'ape'",
    ),
    "two renamed": (
        in_both(lambda split: [(split / name).rename(split / f"a-{name}") for name in ("cat", "dog")]),
        "class 'cat' is now 'a-cat'; class 'dog' is now 'a-dog'",
    ),
    "all renamed": (
        in_both(lambda split: [(split / name).rename(split / name.upper()) for name in CLASSES]),
        "class 'cat' is now 'CAT'; class 'dog' is now 'DOG'; class 'owl' is now 'OWL'",
    ),
    "a class for another": (
        in_both(lambda split: [(split / "cat").rename(split / "ape"), photo(split / "ape/9.png", 222)]),
        "class 'cat' is now 'ape'; training images: 1 more in 'ape'",
    ),
    "a long name": (
        in_both(lambda split: (split / "owl").rename(split / ("x" * 200))),
        "class 'owl' is now 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'",
    ),
}
ORDERS = {
    "a class renamed, others move": (
        in_both(lambda split: (split / "cat").rename(split / "wolf")),
        "class 'cat' is now 'wolf'",
        "'cat' as class 0, the data as it is now has 'dog' there",
    ),
    "two renamed, the third moves": (
        in_both(lambda split: [(split / name).rename(split / f"z-{name}") for name in ("cat", "dog")]),
        "class 'cat' is now 'z-cat'; class 'dog' is now 'z-dog'",
        "'cat' as class 0, the data as it is now has 'owl' there",
    ),
    "two renamed into each other's order": (
        in_both(lambda split: [(split / "cat").rename(split / "fox"), (split / "dog").rename(split / "ant")]),
        "class 'dog' is now 'ant'; class 'cat' is now 'fox'",
        "'cat' as class 0, the data as it is now has 'ant' there",
    ),
    "a class for another, others move": (
        in_both(lambda split: [(split / "cat").rename(split / "yak"), photo(split / "yak/9.png", 222)]),
        "class 'cat' is now 'yak'; training images: 1 more in 'yak'",
        "'cat' as class 0, the data as it is now has 'dog' there",
    ),
}
COUNTS = {
    "a class more": (in_both(lambda split: photo(split / "emu/0.png", 250)), "class 'emu' is new"),
    "a class more, last": (in_both(lambda split: photo(split / "yak/0.png", 250)), "class 'yak' is new"),
    "a class fewer": (in_both(lambda split: shutil.rmtree(split / "cat")), "class 'cat' is gone"),
    "the last class fewer": (in_both(lambda split: shutil.rmtree(split / "owl")), "class 'owl' is gone"),
    "two classes are one": (
        in_both(
            lambda split: (
                [path.rename(split / f"cat/d{path.name}") for path in (split / "dog").iterdir()]
                and (split / "dog").rmdir()
            )
        ),
        "class 'dog' is gone",
    ),
    "a hundred classes more": (
        in_both(lambda split: [photo(split / f"more-{n:03}/0.png", n) for n in range(100)]),
        "class 'more-000' is new; class 'more-001' is new",
    ),
}


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(words, capsys):
    """The one line that a command line is refused with."""
    capsys.readouterr()
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert len(line) <= 300, line
    return line


def accepted(place, said, capsys):
    """A resume with --accept-changes says what changed, ends, and keeps the new fingerprint."""
    assert cli.main(["train", "run", "--resume", "--accept-changes"]) == 0
    assert f"goes on with other data: {said}" in capsys.readouterr().err
    state, _, _ = checkpoint.load_latest(place / "run/checkpoints")
    assert state["facts"] == json.loads((place / "run/data.json").read_text())
    starts = json.loads((place / "run/environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, STEP]
    assert starts[0]["data_changes"] == []
    assert starts[1]["data_changes"]
    assert cli.main(["train", "run", "--resume"]) == 0
    assert cli.main(["eval", "run"]) == 0
    assert "other data" not in capsys.readouterr().err
    return state


@pytest.mark.parametrize("kind", some(IMAGES, 3))
def test_other_images_are_refused_and_can_be_accepted(place, kind, capsys):
    change, said, scored = IMAGES[kind]
    change(place / "photos")
    before = content(place / "run")
    assert said in refused(["train", "run", "--resume"], capsys)
    if scored == "refused":
        assert "classes have changed places" in refused(["eval", "run"], capsys)
    else:
        assert cli.main(["eval", "run"]) == 0
        assert ("the data has changed" in capsys.readouterr().err) == (scored == "said")
    after = content(place / "run")
    assert {path: after[path] for path in before} == before
    accepted(place, said, capsys)


@pytest.mark.parametrize("kind", some(NAMES, 1))
def test_renamed_classes_are_refused_and_can_be_accepted(place, kind, capsys):
    change, said = NAMES[kind]
    change(place / "photos")
    assert said in refused(["train", "run", "--resume"], capsys)
    assert said.partition("; training")[0] in refused(["eval", "run"], capsys)
    state = accepted(place, said, capsys)
    assert sorted(path.name for path in (place / "photos/val").iterdir()) == state["facts"]["classes"]


@pytest.mark.parametrize("kind", some(ORDERS, 1))
def test_no_label_moves_also_where_changes_are_accepted(place, kind, capsys):
    change, said, there = ORDERS[kind]
    change(place / "photos")
    for more in ([], ["--accept-changes"]):
        line = refused(["train", "run", "--resume", *more], capsys)
        assert there in line
        assert said.partition("; training")[0] in line
    assert said.partition("; training")[0] in refused(["eval", "run"], capsys)


@pytest.mark.parametrize("kind", some(COUNTS, 1))
def test_another_number_of_classes_does_not_fit(place, kind, capsys):
    change, said = COUNTS[kind]
    change(place / "photos")
    for more in ([], ["--accept-changes"]):
        line = refused(["train", "run", "--resume", *more], capsys)
        assert said in line
        assert "its model does not fit" in line
    assert said in refused(["eval", "run"], capsys)


@pytest.mark.parametrize("kind", some({**NAMES, **ORDERS, **COUNTS}, 1))
def test_eval_elsewhere_on_other_classes_is_refused(place, kind, capsys):
    change, said, *_ = {**NAMES, **ORDERS, **COUNTS}[kind]
    shutil.copytree(place / "photos", place / "elsewhere")
    assert cli.main(["eval", "run", "--data.root", "elsewhere"]) == 0
    change(place / "elsewhere")
    assert said.partition("; training")[0] in refused(["eval", "run", "--data.root", "elsewhere"], capsys)


@pytest.mark.parametrize("way", some(["moved", "copied", "touched", "linked"], 1))
def test_the_same_data_elsewhere_is_the_same(place, way, capsys):
    if way == "moved":
        (place / "photos").rename(place / "elsewhere")
    elif way == "linked":
        (place / "photos").rename(place / "real")
        (place / "elsewhere").symlink_to("real")
    else:
        shutil.copytree(place / "photos", place / "elsewhere", copy_function=shutil.copy)
    for path in (place / "elsewhere").rglob("*.png"):
        path.touch()
    assert cli.main(["train", "run", "--resume", "--data.root", "elsewhere"]) == 0
    assert "data" not in capsys.readouterr().err


def test_changes_are_accepted_on_resume_alone(place, capsys):
    assert "goes with --resume" in refused(["train", "run", "--accept-changes"], capsys)


def test_a_run_of_before_is_taken_as_it_is(place, capsys):
    """A checkpoint without a fingerprint."""
    state, path, _ = checkpoint.load_latest(place / "run/checkpoints")
    del state["facts"]["data"]
    checkpoint.save(path.parent, STEP, state)
    photo(place / "photos/train/cat/8.png", 200)
    assert cli.main(["eval", "run"]) == 0
    assert cli.main(["train", "run", "--resume"]) == 0
    photo(place / "photos/train/cat/9.png", 201)
    assert "1 more in 'cat'" in refused(["train", "run", "--resume"], capsys)


def test_a_run_that_is_past_the_end_of_the_new_data_is_refused(place, capsys):
    for path in (place / "photos/train").rglob("[4-7].png"):
        path.unlink()  # one step an epoch
    line = refused(["train", "run", "--resume", "--accept-changes"], capsys)
    assert f"has done {STEP} steps" in line
    assert "it would have 2" in line


def test_means_are_over_the_steps_since_the_last_record(place):
    """Two steps an epoch now: step 4, one after the last record, ends one."""
    state, _, _ = checkpoint.load_latest(place / "run/checkpoints")
    (place / "photos/train/owl/3.png").unlink()
    assert cli.main(["train", "run", "--resume", "--accept-changes"]) == 0
    records = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [3, STEP]
    assert records[1]["train_loss"] == pytest.approx(state["sums"][0]["loss"])


@pytest.mark.parametrize("before", some([2, 3, 8], 1))
def test_another_number_of_processes_is_said(place, before, capsys):
    file = place / "run/environment.json"
    file.write_text(file.read_text().replace('"processes": 1', f'"processes": {before}'))
    assert cli.main(["train", "run", "--resume"]) == 0
    said = capsys.readouterr().err
    assert said.count(f"another number of processes, 1 for {before}: each step has the same 8 images") == 1
    starts = json.loads(file.read_text())["starts"]
    assert [start["processes"] for start in starts] == [before, 1]


def test_another_number_of_threads_is_said(place, capsys):
    file = place / "run/environment.json"
    here = torch.get_num_threads()
    file.write_text(file.read_text().replace(f'"torch_threads": {here}', f'"torch_threads": {here + 7}'))
    assert cli.main(["train", "run", "--resume"]) == 0
    said = f"another number of threads, {here} for {here + 7}: rounding differs"
    assert capsys.readouterr().err.count(said) == 1
    assert cli.main(["train", "run", "--resume"]) == 0
    assert "threads" not in capsys.readouterr().err


@pytest.mark.parametrize("size", some([3, 5, 16], 1))
def test_a_batch_that_does_not_divide_is_refused(place, size, capsys, monkeypatch):
    monkeypatch.setattr(World, "__enter__", lambda self: self, raising=False)
    monkeypatch.setattr(World, "__exit__", lambda *_: None, raising=False)
    monkeypatch.setattr(runs, "world", lambda: World(0, size, torch.device("cpu")))
    monkeypatch.setattr(runs, "check_copies", lambda *given: None)  # there is nobody to ask
    assert f"does not divide over {size} processes" in refused(["train", "run", "--resume"], capsys)


def test_two_processes_go_on_for_one(place, capfd):
    """And end where one would: each step has the same images."""
    shutil.copytree("run", "alone")
    assert cli.main(["train", "alone", "--resume"]) == 0
    capfd.readouterr()
    assert as_ranks(cli.main, ["train", "run", "--resume"]) == [0, 0]
    assert "2 for 1: each step has the same 8 images, 4 a process" in capfd.readouterr().err
    starts = json.loads((place / "run/environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [1, 2]
    ends = [json.loads((place / name / "summary.json").read_text()) for name in ("run", "alone")]
    for key in ("train_loss", "val_loss"):
        assert ends[0][key] == pytest.approx(ends[1][key], rel=1e-3)


# Detection: what is compared, without training.


@pytest.fixture
def coco(tmp_path):
    """Three images of two classes."""
    for number in range(3):
        photo(tmp_path / f"coco/val2017/{number}.png", number)
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 24 + n // 5 % 7, "height": 24 + n % 5} for n in range(3)
    ]
    rows = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 2, 9, 8], "area": 72} for n in range(3)
    ]
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return tmp_path, content


def described(root, content):
    file = root / "coco/annotations/instances_val2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    images = open_detection("coco", "val", root=root, masks=False)
    return {"classes": list(images.classes), "data": {"held-out": images.fingerprint()}}


def with_one_more(root, content):
    photo(root / "coco/val2017/3.png", 3)
    content["images"].append(content["images"][0] | {"id": 3, "file_name": "3.png", "height": 27})


COCO = {
    "nothing": (lambda root, c: None, ""),
    "one more": (with_one_more, "held-out images: 1 more"),
    "one fewer": (lambda root, c: [c["images"].pop(), c["annotations"].pop()], "held-out images: 1 fewer"),
    "a box": (lambda root, c: c["annotations"][0].update(bbox=[1, 2, 9, 7]), "other sizes or annotations"),
    "a label": (lambda root, c: c["annotations"][0].update(category_id=2), "other sizes or annotations"),
    "a crowd": (lambda root, c: c["annotations"][0].update(iscrowd=1), "other sizes or annotations"),
    "a file": (
        lambda root, c: shutil.copy(root / "coco/val2017/1.png", root / "coco/val2017/0.png"),
        "other sizes or annotations",
    ),
    "a name": (
        lambda root, c: [
            (root / "coco/val2017/0.png").rename(root / 'coco/val2017/a"\\b.png'),
            c["images"][0].update(file_name='a"\\b.png'),
        ],
        "held-out images: other names",
    ),
    "a class renamed": (lambda root, c: c["categories"][0].update(name="wolf"), "class 'cat' is now 'wolf'"),
    "classes swapped": (
        lambda root, c: [c["categories"][0].update(name="dog"), c["categories"][1].update(name="cat")],
        "the classes are in another order",
    ),
    "a class more": (lambda root, c: c["categories"].append({"id": 9, "name": "emu"}), "class 'emu' is new"),
}


@pytest.mark.parametrize("kind", some(COCO, 6))
def test_other_annotations_are_seen(coco, kind):
    root, content = coco
    before = described(root, content)
    change, said = COCO[kind]
    change(root, content)
    words = changes(before, described(root, content))
    assert shortened(words) == said if not said else re.search(re.escape(said), shortened(words))


def test_rows_that_classes_share_tell_of_no_move():
    """Of several one image is taken, or a class is emptied: the row becomes one that another class has."""
    full, fewer, none = [3, "names", "sizes"], [2, "less", "less"], [0, "", ""]
    assert relabelled({"a": full, "b": fewer}, {"a": fewer, "b": fewer}) == []
    assert relabelled({"a": full, "b": full, "c": fewer}, {"a": full, "b": none, "c": full}) == []
    assert relabelled({"a": none, "b": full}, {"a": full, "b": none}) == ["'a' has those that 'b' had"]
    before, after = (
        {"classes": ["a", "b"], "data": {"held-out": rows}}
        for rows in ({"a": full, "b": fewer}, {"a": fewer, "b": fewer})
    )
    assert changes(before, after) == ["held-out images: 1 fewer in 'a'"]
    alike = {"classes": ["a", "b"], "data": {"held-out": {"a": full, "b": full}}}
    renamed = {"classes": ["c", "d"], "data": {"held-out": {"c": full, "d": full}}}
    assert renames(alike, renamed) == {}, "which is which is not known"


def test_a_class_in_another_unicode_form_is_said_to_be():
    one, other = ({"classes": [normalize(form, "café"), "tea"], "data": {}} for form in ("NFC", "NFD"))
    assert changes(one, other)[0].endswith("(the same letters in another Unicode form)")
    assert changes(one, {"classes": ["coffee", "tea"], "data": {}}) == ["class 'café' is now 'coffee'"]


@pytest.mark.parametrize("moved", ["label", "pixel", "one more", "nothing"])
def test_other_images_in_memory_are_seen(moved):
    images, labels = np.zeros((6, 4, 4, 3), dtype=np.uint8), np.array([0, 0, 1, 1, 2, 2])
    images[:] = np.arange(6)[:, None, None, None]

    def facts():
        return {"classes": CLASSES, "data": {"training": of_arrays(images, labels, CLASSES)}}

    before = facts()
    if moved == "label":
        labels[[1, 2]] = labels[[2, 1]]
    elif moved == "pixel":
        images[3, 1, 2, 0] ^= 1
    elif moved == "one more":
        images, labels = np.concatenate([images, images[:1]]), np.append(labels, 2)
    said = {
        "label": "training images: other pixels in 'cat', other pixels in 'dog'",
        "pixel": "training images: other pixels in 'dog'",
        "one more": "training images: 1 more in 'owl'",
        "nothing": "",
    }
    assert shortened(changes(before, facts())) == said[moved]


def test_what_a_run_began_from_stays_so(place):
    """Its checkpoint has the weights, so that a resume needs them no more."""
    begun = TINY | {"model": TINY["model"] | {"weights": "run"}, "pictures": False}
    with broken_off_after(1):
        runs.train(Recipe.model_validate(begun), "begun")
    without = Recipe.model_validate(TINY | {"pictures": False})
    for folder, other, said in (("begun", "photos", "run"), ("run", "run", "no weights")):
        model = without.model.model_copy(update={"weights": other})
        with pytest.raises(UserError, match=f"{folder} was started from {said}, not from {other}: leave"):
            runs.train(without.model_copy(update={"model": model}), folder, resume=True)
    runs.train(without, "begun", resume=True)
    assert load_recipe("begun").model.weights == "run"
    state, _, _ = checkpoint.load_latest(place / "begun/checkpoints")
    assert state["recipe"]["model"]["weights"] == "run"
