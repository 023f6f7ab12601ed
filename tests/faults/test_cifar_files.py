"""CIFAR-100's pickles cut, flipped, forged, or of other content: a line, and nothing in them is run."""

import hashlib
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from fault_cases import flips, some

from attneck.data import open_dataset

LABELS = [*range(12)]
DATA = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
NAMES = [b"class %d" % number for number in range(100)]
TEST = pickle.dumps({b"data": DATA, b"fine_labels": LABELS}, 2)
META = pickle.dumps({b"fine_label_names": NAMES}, 2)


def opened(folder, *, trusted=True, test=TEST, meta=META):
    """The held-out images of a folder with these files; trusted: their sums are accepted."""
    place = folder / "cifar-100-python"
    place.mkdir(exist_ok=True)
    (place / "test").write_bytes(test)
    (place / "meta").write_bytes(meta)
    sums = [hashlib.md5(raw).hexdigest() for raw in (test, meta)]
    return open_dataset("cifar100", "val", root=folder, md5=sums if trusted else sums[1:])


def refused(folder, **files):
    with pytest.raises(ValueError, match="cifar-100-python/") as error:
        opened(folder, **files)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whole_files_are_read(tmp_path):
    images = opened(tmp_path)
    assert images.labels.tolist() == LABELS
    np.testing.assert_array_equal(images.images.transpose(0, 3, 1, 2).reshape(12, 3072), DATA)


@pytest.mark.parametrize("cut", some(range(0, len(TEST), len(TEST) // 50), 10))
def test_cut(tmp_path, cut):
    assert "has md5" in refused(tmp_path, test=TEST[:cut], trusted=False)
    refused(tmp_path, test=TEST[:cut])


@pytest.mark.parametrize(("byte", "bit"), some(flips(600, 150) + flips(len(TEST), 50), 20))
def test_flipped(tmp_path, byte, bit):
    """A sum that is wrong is refused; one that the user accepts may still be of a file that is none."""
    raw = bytearray(TEST)
    raw[byte] ^= 1 << bit
    assert "has md5" in refused(tmp_path, test=bytes(raw), trusted=False)
    images = opened_or_refusal(tmp_path, test=bytes(raw))
    if isinstance(images, str):
        assert "\n" not in images
    else:
        assert images.images.shape == (12, 32, 32, 3)


def opened_or_refusal(folder, **files):
    try:
        return opened(folder, **files)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("where", some(range(0, len(META), len(META) // 40), 5))
def test_names_flipped(tmp_path, where):
    raw = bytearray(META)
    raw[where] ^= 4
    images = opened_or_refusal(tmp_path, meta=bytes(raw))
    assert "\n" not in images if isinstance(images, str) else len(set(images.classes)) == 100


class Run:
    """A pickle of it runs a command."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


TOUCH = "touch ran"
MEMO = struct.pack("<I", 0x1FFF_FFFF)
FORGED = {
    "os.system": pickle.dumps(Run(os.system, TOUCH)),
    "os.system in a dictionary": pickle.dumps({b"data": Run(os.system, TOUCH)}, 2),
    "eval": pickle.dumps(Run(eval, "__import__('os').system('touch ran')")),
    "exec of protocol 0": pickle.dumps(Run(exec, "open('ran', 'w')"), 0),
    "getattr": pickle.dumps(Run(getattr, "", "join")),
    "numpy's load": pickle.dumps(Run(np.load, "ran")),
    "numpy's array of objects": pickle.dumps({b"data": np.array([{}, []], dtype=object)}),
    "an instance": b"(S'touch ran'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'touch ran'\no.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.",
    "a persistent id": b"Ptouch ran\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an index of many GB": b"\x80\x02}r" + MEMO + b".",
    "a text of many GB": b"\x80\x02X" + MEMO + b"short.",
    "bytes of many GB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"short.",
    "a frame of many GB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.",
    "a long integer": b"\x80\x02\x8b" + MEMO + b"\x01.",
    "deep lists": b"(" * 100_000 + b"l" * 100_000 + b".",
    "a list": pickle.dumps([1]),
    "a future protocol": b"\x80\x2a}.",
    "nothing": b"",
    "a zip": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("file", ["test", "meta"])
@pytest.mark.parametrize("case", FORGED)
def test_forged(tmp_path, monkeypatch, case, file):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, **{file: FORGED[case]})
    assert not Path("ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


CONTENT = {
    "nothing": {},
    "floats": {b"data": DATA.astype(np.float32), b"fine_labels": LABELS},
    "signed": {b"data": DATA.astype(np.int8), b"fine_labels": LABELS},
    "the other way round": {b"data": DATA.T, b"fine_labels": LABELS},
    "flat": {b"data": DATA.ravel(), b"fine_labels": LABELS},
    "CIFAR-10's": {b"data": DATA, b"labels": LABELS},
    "as images": {b"data": DATA.reshape(12, 32, 32, 3), b"fine_labels": LABELS},
    "lists of pixels": {b"data": DATA.tolist(), b"fine_labels": LABELS},
    "no images": {b"data": DATA[:0], b"fine_labels": []},
    "a label more": {b"data": DATA, b"fine_labels": [*LABELS, 1]},
    "a label fewer": {b"data": DATA, b"fine_labels": LABELS[1:]},
    "label 100": {b"data": DATA, b"fine_labels": [*LABELS[1:], 100]},
    "label -1": {b"data": DATA, b"fine_labels": [*LABELS[1:], -1]},
    "a large label": {b"data": DATA, b"fine_labels": [*LABELS[1:], 2**70]},
    "a label that is text": {b"data": DATA, b"fine_labels": [*LABELS[1:], b"7"]},
    "a label that is half": {b"data": DATA, b"fine_labels": [*LABELS[1:], 0.5]},
    "a label that is true": {b"data": DATA, b"fine_labels": [*LABELS[1:], True]},
    "a label that is none": {b"data": DATA, b"fine_labels": [*LABELS[1:], None]},
    "a label that is a list": {b"data": DATA, b"fine_labels": [*LABELS[1:], [1]]},
    "a label that is an array": {b"data": DATA, b"fine_labels": [*LABELS[1:], np.zeros(1)]},
    "labels in rows": {b"data": DATA, b"fine_labels": np.zeros((12, 1), dtype=np.int64)},
    "labels that are floats": {b"data": DATA, b"fine_labels": np.zeros(12)},
    "labels that are text": {b"data": DATA, b"fine_labels": b"0" * 12},
    "labels in a dictionary": {b"data": DATA, b"fine_labels": dict.fromkeys(LABELS, 1)},
}


@pytest.mark.parametrize("case", CONTENT)
def test_other_content(tmp_path, case):
    assert "not CIFAR-100's data" in refused(tmp_path, test=pickle.dumps(CONTENT[case], 3))


OTHER_NAMES = {
    "none": None,
    "99": NAMES[1:],
    "two alike": [*NAMES[1:], b"class 7"],
    "a hundred letters": "".join(map(chr, range(1000, 1100))),
    "numbers": [*range(100)],
    "a number": 7,
    "a dictionary": dict.fromkeys(NAMES),
}


@pytest.mark.parametrize("case", OTHER_NAMES)
def test_other_names(tmp_path, case):
    raw = pickle.dumps({b"fine_label_names": OTHER_NAMES[case]}, 2)
    assert "fine_label_names" in refused(tmp_path, meta=raw)


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a link to itself"])
def test_no_file(tmp_path, kind):
    opened(tmp_path)
    path = tmp_path / "cifar-100-python/test"
    path.unlink()
    make = {
        "a folder": os.mkdir,
        "a FIFO": os.mkfifo,
        "a link to itself": lambda path: path.symlink_to("test"),
    }
    make[kind](path)
    with pytest.raises(FileNotFoundError, match="test is missing"):
        open_dataset("cifar100", "val", root=tmp_path)
