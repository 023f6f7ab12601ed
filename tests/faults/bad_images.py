"""Not a test: files with an image's name that are no image, half of one, or far too much of one."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, features

Writer = Callable[[Path], None]
"""Makes the file `path`."""

NOISE = np.random.default_rng(3).integers(0, 256, (48, 40, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(48), np.arange(40)).astype(np.uint8)[..., None] * np.array(
    [1, 2, 3], np.uint8
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *["AVIF"] * features.check("avif"))


def whole(form: str, pixels: Any = NOISE, **options: Any) -> bytes:
    """An image in a format of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def content(data: bytes) -> Writer:
    """A file that holds these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def link(target: str) -> Writer:
    """A symbolic link."""

    def write(path: Path) -> None:
        path.symlink_to(target)

    return write


def two_links(path: Path) -> None:
    other = path.with_name("other_link")
    other.symlink_to(path.name)
    path.symlink_to(other.name)


def bound_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # a socket's path has 107 bytes at most
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, extra: bytes = b"", rows: bytes = b"") -> bytes:
    """A grey PNG whose header says this, whatever is in it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows or bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + body + chunk(b"IEND", b"")


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    """The data with other numbers at a place."""
    raw = struct.pack(form, *values)
    return data[:at] + raw + data[at + len(raw) :]


def jpeg_of(width: int, height: int) -> bytes:
    data = whole("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return patched(data, at, ">HH", height, width)


def tiff_of(tag: int, value: int) -> bytes:
    """A TIFF in which a LONG or SHORT tag has another value."""
    data = bytearray(whole("TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, first)[0]):
        at = first + 2 + 12 * number
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HII", data, at + 2, 4, 1, value)
    return bytes(data)


def tiff_loop() -> bytes:
    """A TIFF whose directory is followed by itself."""
    data = bytearray(whole("TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    struct.pack_into("<I", data, 4, 0x7FFFFFFF)
    return bytes(data)


ZEROS = zlib.compress(bytes(20 << 20), 9)  # 20 MiB in 20 kB
TEXT = chunk(b"zTXt", b"Comment\0\0" + ZEROS)
MANY_TEXTS = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000), 9)) * 100

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(%pipe%touch /tmp/ran) (w) file\n"

BAD: dict[str, Writer] = {
    "empty": content(b""),
    "one byte": content(b"\xff"),
    "text": content(b"no picture\n"),
    "random bytes": content(np.random.default_rng(0).bytes(5000)),
    "zeros": content(bytes(5000)),
    "html": content(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "svg": content(b"<svg xmlns='http://www.w3.org/2000/svg' width='40' height='40'/>"),
    "pdf": content(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
    "heic": content(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)),
    "lfs pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
    "postscript": content(EPS + bytes(500)),
    "postscript with a preview": content(b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 500) + bytes(20) + EPS),
    "windows metafile": content(b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\0\x09\0" + bytes(200)),
    "icon": content(whole("ICO")),
    "jpeg 2000": content(whole("JPEG2000")),
    "targa": content(whole("TGA")),
    "dds": content(whole("DDS")),
    "numpy": content(
        b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}" + bytes(200)
    ),
    "zero wide png": content(png(0, 40)),
    "zero high png": content(png(40, 0)),
    "zero wide bmp": content(patched(whole("BMP"), 18, "<i", 0)),
    "zero wide gif": content(
        patched(patched(whole("GIF"), 6, "<H", 0), whole("GIF").index(b"\x2c", 781) + 5, "<H", 0)
    ),
    "zero wide jpeg": content(jpeg_of(0, 48)),
    "zero wide ppm": content(b"P6 0 48 255\n" + bytes(100)),
    "zero wide tiff": content(tiff_of(256, 0)),
    "bomb png": content(png(60_000, 60_000)),
    "bomb png over 2**31": content(png(2**31 - 1, 2**31 - 1)),
    "bomb png just over": content(png(20_000, 20_000)),
    "bomb jpeg": content(jpeg_of(65_500, 65_500)),
    "bomb bmp": content(patched(whole("BMP"), 18, "<ii", 100_000, 100_000)),
    "bomb gif": content(patched(whole("GIF"), 6, "<HH", 65_535, 65_535)),
    "bomb ppm": content(b"P6 100000 100000 255\n" + bytes(100)),
    "bomb tiff": content(tiff_of(256, 2**30)),
    "bomb webp": content(patched(whole("WEBP"), 26, "<HH", 16_383, 16_383)),
    "text bomb": content(png(40, 48, TEXT)),
    "many text bombs": content(png(40, 48, MANY_TEXTS)),
    "profile bomb": content(png(40, 48, chunk(b"iCCP", b"sRGB\0\0" + ZEROS[:-4] + bytes(4)))),
    "tiff loop": content(tiff_loop()),
    "tiff of many samples": content(tiff_of(277, 60_000)),
    "tiff of many strips": content(tiff_of(278, 0)),
    "tiff strip elsewhere": content(tiff_of(273, 2**31)),
    "float tiff": content(whole("TIFF", NOISE[..., 0].astype(np.float32) / 255)),
    "32 bit tiff": content(whole("TIFF", NOISE[..., 0].astype(np.int32) * 7000)),
    "link to itself": lambda path: path.symlink_to(path.name),
    "two links": two_links,
    "link to nothing": link("nowhere.png"),
    "fifo": os.mkfifo,
    "link to a terminal": link("/dev/tty"),
    "link to /dev/zero": link("/dev/zero"),
    "link to /dev/null": link("/dev/null"),
    "link to a folder": link(".."),
    "folder": lambda path: path.mkdir(),
    "socket": bound_socket,
}

for form in FORMATS:
    raw = whole(form)
    for tenth in (0, 1, 3, 5, 7, 9):
        BAD[f"{form} cut at {tenth} tenths"] = content(raw[: max(8, len(raw) * tenth // 10)])


def pixel_text(count: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for number in range(count):
        info.add_text(f"key{number}", "value")
    return info


def depth16(form: str, big: bool = False) -> bytes:
    """A grey image of 16 bits, each value 257 times that of NOISE's first channel."""
    wide = NOISE[..., 0].astype(np.uint16) * 257
    if form == "TIFF":
        return raw_tiff(wide.astype(">u2" if big else "<u2"), 16, big=big)
    return whole(form, wide)


def raw_tiff(rows: Any, bits: int, *, white: int = 1, big: bool = False) -> bytes:
    """A grey TIFF of one strip. white: PhotometricInterpretation; 0 where 0 is white."""
    order = ">" if big else "<"
    data = rows.tobytes()
    height, width = rows.shape
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, white),
        (273, 8),
        (277, 1),
        (278, height),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))]
    )
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags) + 1) + entries + bytes(4)


def frames(form: str) -> bytes:
    """An animation whose first frame is SMOOTH."""
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(pixels) for pixels in (SMOOTH, NOISE, 255 - SMOOTH))
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    first.save(buffer, form, save_all=True, append_images=others, **options)
    return buffer.getvalue()


def converted(form: str, mode: str, pixels: Any = SMOOTH, **options: Any) -> tuple[bytes, Any]:
    """An image in another mode, and what Pillow says its colours are."""
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue(), np.asarray(image.convert("RGB"))


def grey(pixels: Any) -> Any:
    """[H, W] → the same as RGB."""
    return np.repeat(pixels[..., None], 3, axis=2)


def see_through() -> tuple[bytes, Any]:
    """A palette with an alpha for each colour."""
    image = Image.fromarray(SMOOTH).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(0, 256, 16)))
    return buffer.getvalue(), np.asarray(image.convert("RGB"))


def with_alpha(mode: str) -> tuple[bytes, Any]:
    image = Image.fromarray(SMOOTH).convert(mode[:-1])
    image.putalpha(Image.fromarray(NOISE[..., 1]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), np.asarray(image.convert("RGB"))


def pgm(most: int) -> tuple[bytes, Any]:
    """A grey PPM whose white is `most`, 255 times a whole number; an old Pillow does not write them."""
    values = NOISE[..., 0].astype(np.uint16) * (most // 255)
    return b"P5 40 48 %d\n" % most + values.astype(">u2").tobytes(), grey(NOISE[..., 0])


GOOD: dict[str, tuple[bytes, Any]] = {
    "16 bit png": (depth16("PNG"), grey(NOISE[..., 0])),
    "16 bit tiff": (depth16("TIFF"), grey(NOISE[..., 0])),
    "16 bit tiff, big end first": (depth16("TIFF", big=True), grey(NOISE[..., 0])),
    "16 bit tiff, 0 is white": (
        raw_tiff((65_535 - NOISE[..., 0].astype(np.uint16) * 257).astype("<u2"), 16, white=0),
        grey(NOISE[..., 0]),
    ),
    "16 bit pgm": pgm(65_535),
    "10 bit pgm": pgm(1020),
    "palette": converted("PNG", "P"),
    "palette with alpha": see_through(),
    "grey with alpha": with_alpha("LA"),
    "colour with alpha": with_alpha("RGBA"),
    "black and white": converted("PNG", "1"),
    "cmyk tiff": converted("TIFF", "CMYK"),
    "grey": converted("PNG", "L"),
    "first frame of a gif": (frames("GIF"), None),
    "first frame of a webp": (frames("WEBP"), SMOOTH),
    "first frame of a png": (frames("PNG"), SMOOTH),
    "first page of a tiff": (frames("TIFF"), SMOOTH),
    "a png's many texts": (whole("PNG", SMOOTH, pnginfo=pixel_text(50)), SMOOTH),
}
"""What must be read, with its pixels; None where only the first frame's neighbourhood is known."""
