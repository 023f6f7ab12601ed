"""A file's own SHA-256 as its last 64 bytes, where its format has room for it.

ONNX has it as an entry of the model's metadata, called sha256; a .pt2, which is a zip, as the zip's comment.
Other programs read such files as any. Without this library, `head -c -64 FILE | sha256sum` prints the sum
that `tail -c 64 FILE` shows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

DIGITS = 64
# What stands before the sum. Protocol buffers: field 14 of ModelProto, metadata_props, of 74 bytes, with
# a key of 6 bytes and a value of 64. A repeated field may stand anywhere, so also at the end.
MARKS = {".onnx": b"\x72\x4a\x0a\x06sha256\x12\x40", ".pt2": b"sha256 "}


def seal(data: bytes, suffix: str) -> bytes:
    """`data` of such a file with its sum at the end."""
    mark = MARKS[suffix]
    if suffix == ".pt2":  # a zip ends with the length of its comment: none so far
        data = data[:-2] + (len(mark) + DIGITS).to_bytes(2, "little")
    data += mark
    return data + hashlib.sha256(data).hexdigest().encode()


def verify(file: str | Path) -> None:
    """Compare an exported .onnx or .pt2 with the sum in it.

    Raises:
        ValueError: other bytes than were written, or a file without such a sum.
        OSError: the file cannot be read.
    """
    path = Path(file)
    data = path.read_bytes()
    mark = MARKS.get(path.suffix, b"?")
    if not data[:-DIGITS].endswith(mark):
        raise ValueError(f"{path} has no sum at its end: damaged, or not written by attneck.export")
    if data[-DIGITS:] != hashlib.sha256(data[:-DIGITS]).hexdigest().encode():
        raise ValueError(f"{path} does not match its SHA-256: damaged; export it or get it anew")
