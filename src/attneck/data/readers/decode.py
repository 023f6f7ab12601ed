"""Image files as pixels: the one place that opens them."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from attneck.data.readers.shards import Packed, Place
from attneck.errors import SHOWN, USERS, RunFailed, UserError, shown_path

_AVIF = "avif" in features.get_supported_modules()  # which Pillow before 11.3 does not know
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *["AVIF"] * _AVIF)
"""What Pillow may try: its other readers start programs (Ghostscript), or are seldom looked at."""

SUFFIXES = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tiff", ".tif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *[".avif"] * _AVIF,
)
"""What the names of such files end in: of a folder's files these are taken for images."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what makes each upright; 1 is upright."""

MAX_PIXELS = 178_956_970
"""Of an image where no other limit is given: what Pillow itself refuses as a bomb lies above."""


class UnreadableImage(UserError, ValueError):  # noqa: N818 - what the image is
    """A file that is missing, damaged, too large or no image: one line with its path."""

    of_one = True

    def __init__(self, said: str) -> None:
        super().__init__(_own_words(said, type(self)))


class ImageTooLarge(UnreadableImage):
    """More pixels than the limit."""


class NotRead(RunFailed):
    """The disk, the mount or the system failed, and the image may be whole: it is never passed over."""

    of_one = True

    def __init__(self, said: str) -> None:
        super().__init__(_own_words(said, type(self)))


def _own_words(said: str, kind: type[Exception]) -> str:
    """A DataLoader hands a worker's error on as its type and its traceback: the last line has the words."""
    return said.rstrip("\n").rpartition("\n")[2].rpartition(f"{kind.__name__}: ")[2]


def decode(
    path: Place, name: str, max_pixels: int | None = None, size: tuple[int, int] | None = None
) -> Image.Image:
    """The image in RGB, upright as its EXIF rotation says; an alpha is not applied.

    Of many frames it is the first. 16 bits of grey are brought to 8.

    Args:
        path: a regular file of one of FORMATS, whatever its name ends in; or one in a shard.
        name: the data set's, for the message.
        max_pixels: the limit; MAX_PIXELS if not given.
        size: the (width, height) that is wanted: where the file has it and the upright image has not, the
            image is left as it lies in the file.

    Raises:
        UnreadableImage: a ValueError, with the path; nothing but a regular file is opened.
        NotRead: the system's fault, as of a mount that is gone.
    """
    with _opened(path, name, max_pixels) as image:
        found = _eight_bits(image).convert("RGB")
        upright = _upright(found, _orientation(image))
        if found.size != size or upright.size == size:
            return upright
        _forget(found)
        return found


def as_decoded(image: Image.Image) -> Image.Image:
    """What `decode` gives of the file of an image that somebody else has opened.

    Raises ValueError for 32 bits a pixel, and what Pillow raises as it decodes.
    """
    found = _upright(_eight_bits(image), _orientation(image))
    return found if found.mode == "RGB" else found.convert("RGB")


def decode_small(
    path: str | IO[bytes], name: str, most: int, max_pixels: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode`, but of `most` pixels at most, and the (width, height) that the upright image has.

    It takes an open file too.

    A larger image is made smaller with its proportions. A JPEG is decoded smaller from the beginning, others
    take four bytes a pixel of the file for a moment, one if they are grey.
    """
    with _opened(path, name, max_pixels) as image:
        if image.format == "TIFF":
            image.load()  # Pillow turns it, and an old one says only then how large it is
        size = image.size
        small = within(size, most)
        if small != size:
            image.draft(None, small)
        found = _eight_bits(image)
        if small != size:
            found = found.resize(small, Image.Resampling.BILINEAR)
        orientation = _orientation(image)
        return _upright(found.convert("RGB"), orientation), size[::-1] if orientation >= 5 else size


def within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """The (width, height) with these proportions that has `most` pixels at most: `size` itself if it can."""
    width, height = size
    scale = (most / (width * height)) ** 0.5
    return size if scale >= 1 else (max(1, int(scale * width)), max(1, int(scale * height)))


def decode_part(
    path: Place, name: str, box: Callable[[tuple[int, int]], Box], side: int, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """A part of the image that `decode` gives, uint8 [h, w, 3].

    A JPEG is decoded at a half, a quarter or an eighth of its size as long as the part keeps `side` pixels on
    each side; `box` is then cut down to whole pixels of that size. Nothing is made larger.

    Args:
        box: of a (width, height): left, top, right and bottom of the part.
    """
    with _opened(path, name, max_pixels) as image:
        by = 1
        if image.format == "JPEG":
            orientation = _orientation(image)
            size = image.size[::-1] if orientation >= 5 else image.size
            left, top, right, bottom = box(size)
            by = next((n for n in (8, 4, 2) if min(right - left, bottom - top) // n >= side), 1)
            if by > 1 and image.draft(None, (image.width // by, image.height // by)) is None:
                by = 1
            if by == orientation == 1 and (pixels := _decoded_by_torchvision(image)) is not None:
                return pixels[top:bottom, left:right]
            found = _upright(_eight_bits(image), orientation)
        else:  # it may say its orientation after its pixels
            found = _eight_bits(image)
            found = _upright(found, _orientation(image))
            size = found.size
            left, top, right, bottom = box(size)
        wide, high, left, top = (right - left) // by, (bottom - top) // by, left // by, top // by
        part = found.crop((left, top, left + wide, top + high))
        return np.array(part if part.mode == "RGB" else part.convert("RGB"))


def _decoded_by_torchvision(image: Image.Image) -> NDArray[np.uint8] | None:
    """All pixels of a colour JPEG that is open, uint8 [H, W, 3]: Pillow's bits, a fifth sooner with the copy.

    None where it is not in colour, or cannot be read: Pillow then says why.
    """
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # seconds of imports: only where used
    except ImportError:  # torchvision means to give it up
        return None
    file: Any = getattr(image, "fp", None)
    if image.mode != "RGB" or file is None:
        return None
    file.seek(0)
    try:
        found = decode_jpeg(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None
    pixels: NDArray[np.uint8] = found.permute(1, 2, 0).numpy()
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def look_at(path: str, name: str, max_pixels: int | None = None) -> None:
    """Raises UnreadableImage for what `decode` refuses before it has decoded a pixel."""
    with _opened(path, name, max_pixels):
        pass


def turned_by(path: str, name: str, max_pixels: int | None = None) -> tuple[int, tuple[int, int]]:
    """The orientation that EXIF gives an image, 1 where that is upright, and (width, height) of the file."""
    with _opened(path, name, max_pixels) as image:
        size = image.size
        if image.format == "PNG":  # it may say it after its pixels
            image.load()
        return _orientation(image), size


REPLACE = "replace it or remove it"
"""What to do about an image that cannot be read, but for these reasons."""
ADVICE: dict[type[Exception], str] = {
    FileNotFoundError: "give the path of one that is there",
    IsADirectoryError: "give the path of an image",
    PermissionError: "let it be read (chmod), or give another",
}


@contextmanager
def _opened(path: Place | IO[bytes], name: str, max_pixels: int | None) -> Iterator[Image.Image]:
    """An image of the right kind and size, none of it decoded; whatever fails inside becomes a line."""
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        if isinstance(path, str):
            _check_regular(path)
        if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = -(-limit // 2)  # Pillow warns over it, and refuses over twice as many
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of oddities: the image is read, or refused here
            source = io.BytesIO(path.read()) if isinstance(path, Packed) else path
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > limit:
                    raise Image.DecompressionBombError
                yield image
    except Image.DecompressionBombError:
        raise ImageTooLarge(
            f"{name}: {_called(path)} has over {limit:,} pixels: give a smaller image, or a higher "
            "max_pixels (train: --data.max-pixels)"
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files.
        if isinstance(error, OSError) and error.errno is not None and error.errno not in USERS:
            raise NotRead(
                f"{name}: {_called(path)} was not read ({_reason(error)}): mend the disk or its mount, and "
                "run the command again (a run: with --resume)"
            ) from error
        advice = next((text for kind, text in ADVICE.items() if isinstance(error, kind)), REPLACE)
        raise UnreadableImage(f"{name}: cannot read {_called(path)} ({_reason(error)}): {advice}") from error


def _called(path: Place | IO[bytes]) -> str:
    return shown_path(str(path)) if isinstance(path, str | Packed) else "the file"


def _check_regular(path: str) -> None:
    """A FIFO would be waited for without end, a device may never end: neither is opened."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if not found.st_size:
        raise ValueError("it is empty")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image decoded, in RGB or grey; Pillow would cut 16 bits off at 255, not scale them."""
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray(_scaled(np.asarray(image), *_bits(image)))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, and nothing says which value is white: save it with 8 or 16")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # Pillow warns of the short way
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8, of an image that is decoded; 1 where there is none, or none that can be read.

    Pillow itself turns a TIFF as it decodes it, and takes the tag away.
    """
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # of a damaged EXIF; the pixels are whole
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    _forget(turned)
    return turned


def _forget(image: Image.Image) -> None:
    """Take away what says that it lies otherwise: whoever is given the image would turn it again."""
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)


def _bits(image: Image.Image) -> tuple[int, bool]:
    """Bits a pixel of grey, and whether 0 is white, which Pillow does not look at where there are 16."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(258, (16,))[0]), tags.get(262) == 0


def _scaled(wide: NDArray[Any], bits: int, inverted: bool) -> NDArray[np.uint8]:
    """[H, W] of so many bits → 8 bits, rounded; some rows at a time, so that no wide copy is made."""
    white = (1 << bits) - 1
    grey = np.empty(wide.shape, dtype=np.uint8)
    for top in range(0, len(wide), 256):
        rows = np.minimum(wide[top : top + 256].astype(np.uint32), white)
        grey[top : top + 256] = (rows * 255 + white // 2) // white
    return 255 - grey if inverted else grey


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:SHOWN] or type(error).__name__
