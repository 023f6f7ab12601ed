"""A part of an image, of a JPEG decoded smaller where the part allows it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision.io
from numpy.typing import NDArray
from PIL import Image

from attneck.data.readers.decode import UnreadableImage, decode, decode_part

SIDE = 32


def photo(width: int = 333, height: int = 262) -> Image.Image:
    """Smooth, with edges: what a photograph is to a decoder."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(x) * np.cos(y)], axis=2)
    waves[60:140, 90:200] += 0.8
    return Image.fromarray((127 + 80 * waves).clip(0, 255).astype(np.uint8))


def saved(path: Path, orientation: int = 1, form: str = "JPEG") -> str:
    exif = Image.Exif()
    exif[274] = orientation
    photo().save(path, form, quality=95, exif=exif)
    return str(path)


@pytest.mark.parametrize(
    ("part", "by"),
    [
        ((40, 24, 103, 151), 1),
        ((40, 24, 104, 88), 2),
        ((8, 16, 136, 143), 2),
        ((8, 8, 264, 262), 4),
        ((0, 0, 257, 258), 8),
    ],
)
def test_a_jpeg_is_decoded_smaller(tmp_path: Path, part: tuple[int, int, int, int], by: int) -> None:
    """By the most that leaves 32 pixels on each side; what is there is what all pixels say, made smaller."""
    path = saved(tmp_path / "a.jpg")
    small = decode_part(path, "test", lambda size: part, SIDE)
    left, top, right, bottom = part
    assert small.shape == ((bottom - top) // by, (right - left) // by, 3)
    assert min(small.shape[:2]) >= SIDE
    left, top, wide, high = (n // by * by for n in (left, top, right - left, bottom - top))
    whole = decode(path, "test").crop((left, top, left + wide, top + high)).reduce(by)
    assert np.abs(small.astype(int) - np.asarray(whole)).mean() < (1.5 if by > 1 else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_its_orientation_comes_first(tmp_path: Path, orientation: int) -> None:
    """The part is of the upright image, whose size is said."""
    path = saved(tmp_path / "a.jpg", orientation)
    upright, sizes = decode(path, "test"), []

    def box(size: tuple[int, int]) -> tuple[int, int, int, int]:
        sizes.append(size)
        return 16, 32, 176, 200

    small = decode_part(path, "test", box, SIDE).astype(int)
    assert sizes == [upright.size]
    assert small.shape == (42, 40, 3)
    assert np.abs(small - np.asarray(upright.crop((16, 32, 176, 200)).reduce(4))).mean() < 6


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_others_are_decoded_whole(tmp_path: Path, form: str) -> None:
    path = saved(tmp_path / "a", 6, form)
    upright = decode(path, "test")
    found = decode_part(path, "test", lambda size: (0, 0, *size), SIDE)
    assert np.array_equal(found, np.asarray(upright))


def test_grey_and_cmyk_are_colour_and_half_a_file_is_refused(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        photo().convert(mode).save(tmp_path / mode, "JPEG")
        found = decode_part(str(tmp_path / mode), "test", lambda size: (0, 0, *size), 250)
        assert np.array_equal(found, np.asarray(decode(str(tmp_path / mode), "test")))
    content = (tmp_path / "L").read_bytes()
    (tmp_path / "L").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match=r"cannot read .*/L "):
        decode_part(str(tmp_path / "L"), "test", lambda size: (0, 0, *size), 250)


@pytest.mark.parametrize("quality", [30, 75, 98])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_torchvision_and_pillow_decode_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quality: int, sampling: str, progressive: bool
) -> None:
    """Also where one of them cannot."""
    path = str(tmp_path / "a")
    photo().save(path, "JPEG", quality=quality, subsampling=sampling, progressive=progressive)
    wanted = np.asarray(decode(path, "test"))

    def whole() -> NDArray[np.uint8]:
        return decode_part(path, "test", lambda size: (0, 0, *size), 250)

    assert np.array_equal(whole(), wanted)

    def fails(*_: object) -> None:
        raise RuntimeError("no JPEG here")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", fails)
    assert np.array_equal(whole(), wanted)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    assert np.array_equal(whole(), wanted)


def test_16_bits_of_grey_are_rounded_to_the_nearest_of_8(tmp_path: Path) -> None:
    """One of 8 is 257 of 16: 128 is nearer to none, 129 to one. So it is beyond the first 256 rows, too."""
    wide = np.tile(np.array([0, 128, 129, 385, 386, 65535], np.uint16), (300, 1))
    Image.fromarray(wide).save(tmp_path / "grey.png")
    grey = np.asarray(decode(str(tmp_path / "grey.png"), "set"))[..., 0]
    assert (grey == [0, 0, 1, 1, 2, 255]).all()
