"""Data sets: the same bits by item, by batch and from workers; refusals that say what to do."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from attneck.data import EvalBatches, Normalise, TrainBatches, collate, loader, open_dataset
from attneck.data.augment.crop_flip import crop_flip
from attneck.data.drawn.relations import Relations
from attneck.data.readers import cifar
from attneck.data.readers.decode import decode
from attneck.data.table import SETS

LOCAL_MD5 = {"train": "ea7afe98e64506c414f9d6ad8904eeb1", "test": "6ddb46bed4bb135a8179d6fcc29376d3"}


@pytest.fixture
def tiny_cifar(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder in CIFAR-100's layout with 60 + 20 random images, and its sums."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for name, count in (("train", 60), ("test", 20)):
        content = {
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"fine_labels": rng.integers(0, 100, count).tolist(),
        }
        sums[name] = _write(folder / name, content)
    sums["meta"] = _write(folder / "meta", {b"fine_label_names": [b"class %d" % i for i in range(100)]})
    return tmp_path, sums


def _write(file: Path, content: object) -> str:
    raw = pickle.dumps(content, 2)
    file.write_bytes(raw)
    return hashlib.md5(raw).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes of images of many formats and sizes; every image of a class has one colour."""
    sizes = [(40, 30), (33, 57), (24, 24), (20, 50)]
    for split, count in (("train", 4), ("val", 2)):
        for c, name in enumerate(("a", "b", "c")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", sizes[i], tuple(int(c == k) * 200 for k in range(3)))
                image.putpixel((5, 5), (9, 9, 9))
                image.save(folder / f"{i}{('.jpeg', '.png', '.webp', '.bmp')[i]}")
    return tmp_path


AUGMENTS = {
    name: data_set.kinds["classification"].augments
    for name, data_set in SETS.items()
    if "classification" in data_set.kinds
}


@pytest.fixture(params=[(name, a) for name in AUGMENTS for a in AUGMENTS[name]], ids="-".join)
def dataset(request: pytest.FixtureRequest) -> Any:
    name, augment = request.param
    options: dict[str, Any] = {"augment": augment, "seed": 5}
    if name == "cifar100":
        options["root"], options["md5"] = request.getfixturevalue("tiny_cifar")
    elif name == "folder":
        options["root"] = request.getfixturevalue("tree")
        options["image_size"] = 24
    else:
        options["size"] = 60
    return open_dataset(name, "train", **options)


def test_item_batch_and_workers_give_the_same_bits(dataset: Any) -> None:
    batches = TrainBatches(len(dataset), 6, seed=5, steps=4)
    alone, forked = list(loader(dataset, batches)), list(loader(dataset, batches, workers=2))
    assert len(alone) == len(forked) == 4
    for keys, (images, labels), (other_images, other_labels) in zip(batches, alone, forked, strict=True):
        size = dataset.image_size
        assert images.shape == (6, 3, size, size)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.shape == (6,)
        assert labels.dtype == torch.int64
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
        for key, image, label in zip(keys, images, labels, strict=True):
            item, item_label = dataset[key]
            assert torch.equal(item, image)
            assert isinstance(item_label, int)
            assert item_label == label


def test_a_batch_of_another_side_has_the_same_images_and_labels(
    dataset: Any, request: pytest.FixtureRequest
) -> None:
    keys, side = [(1, i) for i in range(6)], dataset.image_size * 3 // 2
    images, labels = dataset.__getitems__([(*key, side) for key in keys])
    assert images.shape == (6, 3, side, side)
    assert images.dtype == torch.uint8
    own, as_before = dataset.__getitems__(keys)
    assert own.shape[-1] == dataset.image_size != side
    assert torch.equal(labels, as_before)
    found = images.permute(0, 2, 3, 1).numpy()
    if "cifar" in request.node.name:  # as Pillow resizes, which rounds otherwise
        resized = [
            np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR))
            for one in dataset.pixels(keys)
        ]
        assert abs(found.astype(int) - np.stack(resized)).max() <= 1
    else:
        name, augment = request.node.callspec.params["dataset"]
        root = {"root": request.getfixturevalue("tree")} if name == "folder" else {"size": 60}
        other = open_dataset(name, "train", augment=augment, seed=5, image_size=side, **root)
        assert np.array_equal(found, other.pixels(keys))


def test_one_batch_has_one_side() -> None:
    images = open_dataset("relations", "train", size=8)
    with pytest.raises(ValueError, match=r"sides \[24, 32\]: give one side"):
        images.__getitems__([(0, 0, 24), (0, 1)])
    with pytest.raises(ValueError, match="same in images of 30 pixels: wanted a multiple of 4"):
        images[0, 0, 30]


def test_augmentation_depends_on_the_epoch_and_the_seed(dataset: Any) -> None:
    keys = [(0, i) for i in range(len(dataset))]
    first = dataset.pixels(keys)
    other = dataset.pixels([(1, i) for i in range(len(dataset))])
    assert np.array_equal(first, dataset.pixels(keys))
    endless = isinstance(dataset, Relations)
    assert np.array_equal(first, other) == (dataset.augment == "none" and not endless)
    if endless:  # the same for every seed
        return
    dataset.seed += 1
    assert np.array_equal(first, dataset.pixels(keys)) == (dataset.augment == "none")


def test_workers_that_are_not_forked_have_the_same_bits(dataset: Any) -> None:
    """They are sent the set: on macOS, and by Python 3.14 on Linux too."""
    keys = [(2, index) for index in range(4)]
    sent = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(sent.pixels(keys), dataset.pixels(keys))


def test_images_do_not_touch_the_global_generators(dataset: Any) -> None:
    state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    for _ in loader(dataset, EvalBatches(len(dataset), 4)):
        pass
    assert torch.equal(state, torch.get_rng_state())
    assert numpy_state == pickle.dumps(np.random.get_state())


def test_images_are_normalised(dataset: Any) -> None:
    dataset.augment = "none"
    dataset._transform = None
    keys = [(0, i) for i in range(len(dataset))]
    batch = dataset.__getitems__(keys)
    assert batch[0].dtype == torch.uint8
    assert batch[0].is_contiguous(memory_format=torch.channels_last)
    images, _ = dataset.collate(batch)
    assert torch.equal(images, Normalise(dataset.mean, dataset.std)(batch[0]))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (dataset.mean, dataset.std))
    pixels = torch.from_numpy(dataset.pixels(keys)).permute(0, 3, 1, 2).double() / 255
    torch.testing.assert_close(images.double(), (pixels - mean) / std, rtol=1e-5, atol=1e-5)


def test_an_image_has_the_same_bits_in_every_batch() -> None:
    """(x - 255 mean) · (1 / 255 std), each of the two rounded by itself; floats are normalised already."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    mean, std = (0.1, 0.22, 0.7), (0.3, 0.229, 0.11)
    normalise = Normalise(mean, std)
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    wanted = (pixels - np.float32(np.array(mean) * 255)) * np.float32(1 / (np.array(std) * 255))
    assert wanted.dtype == np.float32
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), wanted)
    for image, whole in zip(pixels, images, strict=True):
        alone = torch.from_numpy(image.transpose(2, 0, 1).copy())  # in the other memory format
        assert torch.equal(normalise(alone[None])[0], whole)
    with pytest.raises(ValueError, match=r"images are torch.float32: give uint8"):
        normalise(images)


def test_batches_of_bytes_are_those_of_floats() -> None:
    dataset = open_dataset("shapes", "train", size=12, augment="crop_flip")
    batches = TrainBatches(12, 6, seed=5, steps=2)
    for workers in (0, 1):
        for raw, ready in zip(
            loader(dataset, batches, workers, collate), loader(dataset, batches), strict=True
        ):
            assert raw[0].dtype == torch.uint8
            assert torch.equal(dataset.collate(raw)[0], ready[0])


def test_crop_flip_reaches_every_corner_and_pads_with_zeros() -> None:
    images = np.random.default_rng(0).integers(1, 256, (5, 32, 32, 3), dtype=np.uint8)
    below_one = 1 - 2**-53
    draws = np.array(
        [[0, 0, 0.5], [below_one, below_one, 0.9], [0.5, 0.5, 0.7], [0.5, 0.5, 0.2], [0, 0.5, 0.1]]
    )
    out = crop_flip(images, draws)
    assert not out[0, :4].any()
    assert not out[0, :, :4].any()
    np.testing.assert_array_equal(out[0, 4:, 4:], images[0, :28, :28])
    np.testing.assert_array_equal(out[1, :28, :28], images[1, 4:, 4:])
    assert not out[1, 28:].any()
    np.testing.assert_array_equal(out[2], images[2])
    np.testing.assert_array_equal(out[3], images[3, :, ::-1])
    np.testing.assert_array_equal(out[4, 4:], images[4, :28, ::-1])


def test_cifar_reads_images_labels_and_names(tiny_cifar: tuple[Path, dict[str, str]]) -> None:
    root, sums = tiny_cifar
    dataset = open_dataset("cifar100", "val", root=root, md5=sums)
    content: dict[Any, Any] = pickle.loads((root / "cifar-100-python/test").read_bytes())
    assert len(dataset) == 20
    assert dataset.classes[7] == "class 7"
    for i in range(20):
        np.testing.assert_array_equal(
            dataset.pixels([(0, i)])[0].transpose(2, 0, 1), content[b"data"][i].reshape(3, 32, 32)
        )
        assert dataset[0, i][1] == content[b"fine_labels"][i]


def test_cifar_refuses_other_sums(tiny_cifar: tuple[Path, dict[str, str]]) -> None:
    root, sums = tiny_cifar
    with pytest.raises(
        ValueError, match=rf"/train has md5 {sums['train']}, wanted 1601\w+d: get cifar"
    ) as error:
        open_dataset("cifar100", "train", root=root)
    assert "\n" not in str(error.value)
    several = {name: ["0" * 32, value] for name, value in sums.items()}
    assert len(open_dataset("cifar100", "train", root=root, md5=several)) == 60
    with pytest.raises(ValueError, match="md5 names tset: its files are train, test and meta"):
        open_dataset("cifar100", "train", root=root, md5={"tset": "0"})


def test_cifar_refuses_a_malicious_pickle_even_with_its_sum(tiny_cifar: tuple[Path, dict[str, str]]) -> None:
    root, sums = tiny_cifar
    raw = b"\x80\x02}U\x04datacposix\nsystem\nU\x0ctouch /tmp/x\x00\x85Rs."
    (root / "cifar-100-python/train").write_bytes(raw)
    with pytest.raises(ValueError, match=r"train: refused to unpickle posix\.system"):
        open_dataset("cifar100", "train", root=root, md5=sums | {"train": hashlib.md5(raw).hexdigest()})


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data": np.zeros((2, 3072)), "fine_labels": [1, 2]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "fine_labels": [1]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "fine_labels": [1, 100]},
    ],
)
def test_cifar_refuses_other_content(
    tiny_cifar: tuple[Path, dict[str, str]], content: dict[str, Any]
) -> None:
    root, sums = tiny_cifar
    sums["train"] = _write(root / "cifar-100-python/train", content)
    with pytest.raises(ValueError, match="train: not CIFAR-100's data"):
        open_dataset("cifar100", "train", root=root, md5=sums)


def test_md5_sums_may_be_given_for_any_file(tiny_cifar: tuple[Path, dict[str, str]]) -> None:
    root, sums = tiny_cifar
    assert len(open_dataset("cifar100", "train", root=root, md5=[*sums.values(), "0"])) == 60
    with pytest.raises(ValueError, match="/train has md5"):
        open_dataset("cifar100", "train", root=root, md5=[sums["meta"]])


@pytest.fixture(scope="module")
def binary_cifar() -> Any:
    """CIFAR-100's 10,000 test images as rows of the binary distribution: 2 labels and 3072 pixels each."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (10_000, 3074), dtype=np.uint8)
    rows[:, 1] = rng.permutation(np.repeat(np.arange(100, dtype=np.uint8), 100))
    rows[:, 0] = rows[:, 1] * 7 % 20
    return rows


def write_binary(root: Path, rows: Any, names: int = 100) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir(exist_ok=True)
    rows.tofile(folder / "test.bin")
    (folder / "fine_label_names.txt").write_text("".join(f"name_{i}\n" for i in range(names)) + "\n")
    return folder


def test_cifars_binary_files_are_the_pickles(tmp_path: Path, binary_cifar: Any) -> None:
    """The same images and labels by either distribution; the pickles are read where both lie."""
    write_binary(tmp_path, binary_cifar)
    binary = open_dataset("cifar100", "val", root=tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    names = {b"fine_label_names": [b"name_%d" % i for i in range(100)]}
    content = {b"data": binary_cifar[:, 2:], b"fine_labels": binary_cifar[:, 1].tolist()}
    sums = [
        _write(tmp_path / "cifar-100-python" / name, part)
        for name, part in (("meta", names), ("test", content))
    ]
    pickled = open_dataset("cifar100", "val", root=tmp_path, md5=sums)
    assert binary.classes == pickled.classes
    np.testing.assert_array_equal(binary.labels, pickled.labels)
    np.testing.assert_array_equal(binary.images, pickled.images)  # type: ignore[attr-defined]
    # Red, green, blue, each row by row.
    keys = [(0, 4_321)]
    np.testing.assert_array_equal(binary.pixels(keys)[0, 2, 5], binary_cifar[4_321, 2 + 2 * 32 + 5 :: 1024])
    with pytest.raises(ValueError, match="/test has md5"):
        open_dataset("cifar100", "val", root=tmp_path)


def test_cifars_damaged_binary_files_are_refused(tmp_path: Path, binary_cifar: Any) -> None:
    shifted = np.roll(binary_cifar.reshape(-1), 1)
    swapped, doubled, regrouped = (binary_cifar.copy() for _ in range(3))
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    doubled[:500] = doubled[500:1000]
    regrouped[3, 0] = (regrouped[3, 0] + 1) % 20
    for rows, message in (
        (binary_cifar[:-1], "test.bin has 30736926 bytes, wanted 30740000: get cifar-100-python or"),
        (shifted, "test.bin has not 100 images of each of 100 classes in 20 groups"),
        (swapped, "test.bin has not 100 images of each"),
        (doubled, "test.bin has not 100 images of each"),
        (regrouped, "test.bin has not 100 images of each"),
    ):
        write_binary(tmp_path, rows)
        with pytest.raises(ValueError, match=message):
            open_dataset("cifar100", "val", root=tmp_path)
    write_binary(tmp_path, binary_cifar, names=99)
    with pytest.raises(ValueError, match=r"fine_label_names\.txt has 99 names, wanted 100"):
        open_dataset("cifar100", "val", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.bin is missing"):
        open_dataset("cifar100", "train", root=tmp_path)


def test_a_missing_file_or_root_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNECK_DATA", raising=False)
    with pytest.raises(ValueError, match=r"ATTNECK_DATA is not set: set it to .*cs\.toronto\.edu"):
        open_dataset("cifar100", "train")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: give the folder that holds cifar"):
        open_dataset("cifar100", "train", root=tmp_path / "nowhere")
    monkeypatch.setenv("ATTNECK_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python/train is missing: its folder must hold"):
        open_dataset("cifar100", "train")


def test_folder_labels_resizes_and_crops(tree: Path) -> None:
    dataset = open_dataset("folder", "val", root=tree, image_size=16)
    assert dataset.classes == ("a", "b", "c")
    assert [dataset[0, i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    for i in range(6):
        image = dataset.pixels([(0, i)])[0]
        assert image.shape == (16, 16, 3)
        assert image.mean(axis=(0, 1)).argmax() == i // 2
    turned = open_dataset("folder", "val", root=tree, image_size=16, classes=("c", "a", "b"))
    assert [turned[0, i][1] for i in range(6)] == [1, 1, 2, 2, 0, 0]


def test_folder_evaluates_the_centre(tmp_path: Path) -> None:
    # A gradient along the longer side: the crop's middle is the image's.
    wide = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    for name, pixels in (("wide", wide), ("tall", wide.transpose(1, 0, 2))):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "val" / name / "0.png")
    images = open_dataset("folder", "val", root=tmp_path, image_size=70).pixels([(0, 0), (0, 1)])
    # Sorted: tall is 0. 80 pixels stay 80, of which the middle 70: 120 - 35 ... 120 + 34.
    np.testing.assert_array_equal(images[1][0, :, 0], np.arange(85, 155))
    np.testing.assert_array_equal(images[0], images[1].transpose(1, 0, 2))


@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 0.9), (70, 0.875), (33, 0.71), (48, 1.0), (64, 1.15)])
def test_folder_resizes_and_cuts_as_timm(tmp_path: Path, size: int, crop_pct: float, way: str) -> None:
    """To the pixel, at sides where a resized side and the crop's place have to be rounded."""
    draw = np.random.default_rng(0)
    (tmp_path / "val" / "a").mkdir(parents=True)
    sides = [(80, 80), (97, 61), (50, 123), (301, 200), (40, 41)]
    photos = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sides]
    for number, photo in enumerate(photos):
        photo.save(tmp_path / "val" / "a" / f"{number}.png")
    options = {"image_size": size, "crop_pct": crop_pct, "interpolation": way}
    got = open_dataset("folder", "val", root=tmp_path, **options).pixels([(0, i) for i in range(len(sides))])
    transform: Any = create_transform((3, size, size), interpolation=way, crop_pct=crop_pct, normalize=False)
    for mine, photo in zip(got, photos, strict=True):
        np.testing.assert_array_equal(mine, transform(photo).permute(1, 2, 0))


def test_folder_under_the_data_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNECK_DATA", str(tree.parent))
    assert len(open_dataset("folder", "train", root=tree.name)) == 12


def test_the_advice_is_for_what_is_wrong_with_the_path(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"No such file or directory\): give the path of one that is there"):
        decode(str(tree / "none.png"), "folder")
    with pytest.raises(ValueError, match=r"\(it is a folder\): give the path of an image"):
        decode(str(tree), "folder")


def test_folder_names_a_broken_image(tree: Path) -> None:
    broken = tree / "train/b/1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = open_dataset("folder", "train", root=tree, image_size=16)
    with pytest.raises(
        ValueError, match=r"cannot read \S*/train/b/1\.png .*: replace it or remove it"
    ) as error:
        dataset.pixels([(0, 5)])
    assert "\n" not in str(error.value)


def test_folder_refuses_trees_that_do_not_fit(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"the classes asked for: 1 more \(c\), 1 missing \(d\)"):
        open_dataset("folder", "train", root=tree, classes=("a", "b", "d"))
    (tree / "val/d").mkdir()
    for split in ("train", "val"):
        with pytest.raises(
            ValueError, match=rf"the classes of \S*/{split} are not those of .*\(d\): make them"
        ):
            open_dataset("folder", split, root=tree)
    (tree / "train/d").mkdir()
    with pytest.raises(ValueError, match="train/d has no images"):
        open_dataset("folder", "train", root=tree)
    with pytest.raises(FileNotFoundError, match=r"train is missing: .* must hold train/<class>/"):
        open_dataset("folder", "train", root=tree / "val")
    (tree / "empty/train").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no class folders"):
        open_dataset("folder", "train", root=tree / "empty")


def test_folder_augmentations_vary_and_randaugment_adds_to_inception(tree: Path) -> None:
    def pixels(augment: str, **options: Any) -> Any:
        dataset = open_dataset(
            "folder", "train", root=tree, image_size=24, augment=augment, seed=1, **options
        )
        return dataset.pixels([(epoch, 0) for epoch in range(40)])

    inception = pixels("inception")
    # The crop and the flip are the same draws; without layers nothing is added.
    np.testing.assert_array_equal(inception, pixels("randaugment", randaugment_layers=0))
    assert not np.array_equal(inception, pixels("randaugment"))
    assert not np.array_equal(pixels("randaugment", randaugment_magnitude=30), pixels("randaugment"))
    assert len({image.tobytes() for image in inception}) > 15
    assert len({image.tobytes() for image in pixels("scale_crop")}) > 15
    assert not np.array_equal(pixels("scale_crop"), inception)
    with pytest.raises(ValueError, match=r"magnitude 31: .* the magnitude 0 \.\.\. 30"):
        pixels("randaugment", randaugment_magnitude=31)


def test_size_spreads_over_the_set(tree: Path, tiny_cifar: tuple[Path, dict[str, str]]) -> None:
    dataset = open_dataset("folder", "train", root=tree, size=3)
    assert [Path(path).parent.name for path in dataset.paths] == ["a", "b", "c"]  # type: ignore[attr-defined]
    root, sums = tiny_cifar
    whole, part = (open_dataset("cifar100", "train", root=root, md5=sums, size=size) for size in (None, 20))
    for i in range(20):
        assert torch.equal(part[0, i][0], whole[0, 3 * i][0])
    with pytest.raises(ValueError, match="size is 61 of 60 images: choose 60 or fewer"):
        open_dataset("cifar100", "train", root=root, md5=sums, size=61)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar10", "train", {}), "data set is 'cifar10': choose shapes, clear_shapes"),
        (("coco", "train", {}), "data set is 'coco': choose shapes, clear_shapes"),
        (("shapes", "test", {}), "split of shapes is 'test': choose train, val"),
        (("shapes", "val", {"augment": "inception"}), "for shapes is 'inception': choose none, crop_flip"),
        (("folder", "val", {"augment": "crop_flip"}), "choose none, inception, randaugment"),
        (("cifar100", "val", {"crop_pct": 0.8}), "crop_pct is given, but it takes root, image_size, augment"),
        (("shapes", "val", {"root": "here"}), "root is given, but it takes image_size, augment, seed, size"),
        (("folder", "val", {"randaugment_layers": 1}), "randaugment_layers goes with augment randaugment"),
        (
            ("folder", "val", {"randaugment_magnitude": 9, "augment": "inception"}),
            "randaugment_magnitude goes with augment randaugment, not inception: leave it out",
        ),
        (("shapes", "val", {"size": 0}), "size=0: wanted a whole number from 1"),
        (("shapes", "val", {"size": 20.5}), "size=20.5: wanted a whole number from 1"),
        (("folder", "val", {"image_size": 20.7}), "image_size=20.7: wanted a whole number from 1"),
        (("folder", "val", {"size": "20"}), "size='20': wanted a whole number from 1"),
        (("shapes", "val", {"image_size": 16, "size": 1}), "16 x 16 pixels: wanted .* 24 pixels a side"),
        (("shapes", "val", {"classes": ("a", "b")}), "shapes: classes is given, but it takes"),
        (("shapes", "val", {"md5": ["0"]}), "shapes: md5 is given, but it takes .*: leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, str, dict[str, Any]], message: str) -> None:
    name, split, options = arguments
    with pytest.raises(ValueError, match=message):
        open_dataset(name, split, **options)


@pytest.mark.data
def test_real_cifar() -> None:
    root = os.environ["ATTNECK_DATA"]
    images, labels, classes = cifar.read(Path(root), "val", LOCAL_MD5)
    assert images.shape == (10_000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [100] * 100
    assert (classes[0], classes[99]) == ("apple", "worm")
    train = open_dataset("cifar100", "train", augment="crop_flip", md5=LOCAL_MD5)
    assert len(train) == 50_000
    assert np.bincount(train.labels).tolist() == [500] * 100
    pixels = train.images.reshape(-1, 3)  # type: ignore[attr-defined]
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)]) / len(pixels)
    levels = np.arange(256) / 255
    mean = counts @ levels
    np.testing.assert_allclose(mean, train.mean, atol=1e-7)
    np.testing.assert_allclose(np.sqrt(counts @ levels**2 - mean**2), train.std, atol=1e-7)
    batches = TrainBatches(len(train), 128, seed=0, steps=4)
    alone, forked = list(loader(train, batches)), list(loader(train, batches, workers=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, forked, strict=True))


@pytest.mark.data
@pytest.mark.parametrize("augment", AUGMENTS["folder"])
def test_real_folder(augment: str) -> None:
    train = open_dataset("folder", "train", root="tiny-imagenet-20", image_size=64, augment=augment)
    val = open_dataset("folder", "val", root="tiny-imagenet-20", image_size=64)
    assert (len(train), len(val), len(train.classes)) == (10_000, 1_000, 20)
    assert train.classes == val.classes
    assert np.bincount(val.labels).tolist() == [50] * 20
    images, labels = next(iter(loader(train, TrainBatches(len(train), 32, seed=0, steps=1))))
    assert images.shape == (32, 3, 64, 64)
    assert len(labels.unique()) > 5
    assert abs(images.mean()) < 1
    assert 0.5 < images.std() < 2
