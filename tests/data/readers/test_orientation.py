"""EXIF's rotation is followed once, wherever an image is read; where it is damaged the pixels stay."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from attneck.data import open_dataset
from attneck.data.annotated import read_pixels
from attneck.data.readers.annotations import Record
from attneck.data.readers.decode import UnreadableImage, as_decoded, decode, decode_small

WIDTH, HEIGHT = 48, 32
FORMS = ["JPEG", "PNG", "WEBP", "TIFF", *["AVIF"] * features.check("avif")]


def upright():
    """A quarter of each corner in another grey."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2], pixels[: HEIGHT // 2, WIDTH // 2 :] = 250, 170
    pixels[HEIGHT // 2 :, : WIDTH // 2] = 90
    return Image.fromarray(pixels).convert("RGB")


def turned(orientation):
    """The same, to be turned back by this orientation."""
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    image = upright()
    image.getexif()[274] = undo
    back = ImageOps.exif_transpose(image)
    back.getexif().clear()
    return back


def saved(path, orientation, form):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form in ("JPEG", "AVIF") else {}
    turned(orientation).save(path, form, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_followed_once(tmp_path, form):
    wanted = np.asarray(upright()).astype(int)
    for orientation in range(1, 9):
        path = saved(tmp_path / "a", orientation, form)
        found = decode(path, "test")
        assert found.size == (WIDTH, HEIGHT)
        assert np.abs(np.asarray(found) - wanted).mean() < 3, orientation
        assert as_decoded(found).tobytes() == found.tobytes(), "it is turned once more"
        assert decode(path, "test", size=(WIDTH, HEIGHT)).tobytes() == found.tobytes(), orientation
        small, size = decode_small(path, "test", WIDTH * HEIGHT // 4)
        assert size == (WIDTH, HEIGHT)
        assert small.size == (WIDTH // 2, HEIGHT // 2)
        assert np.abs(np.asarray(small) - wanted[::2, ::2]).mean() < 12, orientation
        assert as_decoded(small).tobytes() == small.tobytes()
        lying = decode(path, "test", size=(HEIGHT, WIDTH))
        assert as_decoded(lying).tobytes() == lying.tobytes()


def test_training_and_scoring_see_it_upright(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        saved(tmp_path / split / "a/1.jpg", 6, "JPEG")
        upright().save(tmp_path / split / "a/2.jpg", "JPEG", quality=95)
    for split in ("train", "val"):
        one, other = open_dataset("folder", split, root=tmp_path, image_size=24).pixels([(0, 0), (0, 1)])
        assert np.abs(one.astype(int) - other).mean() < 4


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"no exif", b"Exif\0\0II*\0"]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_damaged_one_leaves_the_pixels(tmp_path, form, exif, recwarn):
    upright().save(tmp_path / "a", form, exif=exif)
    assert decode(str(tmp_path / "a"), "test").size == (WIDTH, HEIGHT)
    assert not recwarn.list


def test_an_orientation_that_there_is_not(tmp_path):
    exif = Image.Exif()
    exif[274] = 77
    buffer = io.BytesIO()
    upright().save(buffer, "JPEG", exif=exif)
    (tmp_path / "a").write_bytes(buffer.getvalue())
    assert decode(str(tmp_path / "a"), "test").size == (WIDTH, HEIGHT)


def test_boxes_are_in_the_pixels_that_their_annotation_says(tmp_path):
    """Upright as tools draw them, or as it lies in the file where the size says so; else refused."""
    path = saved(tmp_path / "a", 6, "PNG")
    for width, height, wanted in ((WIDTH, HEIGHT, upright()), (HEIGHT, WIDTH, turned(6))):
        record = Record(1, path, width, height, [])
        np.testing.assert_array_equal(read_pixels(record, "coco"), np.asarray(wanted))
    with pytest.raises(UnreadableImage, match="its annotation says 10 x 10"):
        read_pixels(Record(1, path, 10, 10, []), "coco")
