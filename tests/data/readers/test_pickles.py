"""The restricted unpickler reads arrays and containers, and runs nothing."""

import builtins
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attneck.data.readers import pickles


class Calls:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_reads_what_python_3_wrote(protocol: int) -> None:
    content: dict[Any, Any] = {
        "data": np.arange(24, dtype=np.uint8).reshape(4, 6),
        "turned": np.arange(24, dtype=np.uint8).reshape(4, 6).T,
        "wide": np.array([1.5, -2], dtype=">f8"),
        "fine_labels": [1, 2, 3],
        b"fine_label_names": ["äpple", b"bear"],
        "nested": {"a": (None, True, 2.5, {"b"}) if protocol > 3 else (None, True, 2.5)},
    }
    read = pickles.loads(pickle.dumps(content, protocol), "here")
    content["fine_label_names"] = content.pop(b"fine_label_names")
    assert list(map(type, read)) == [str] * len(content)
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            assert read[key].dtype == value.dtype
            np.testing.assert_array_equal(read[key], value)
        elif protocol > 2:
            assert read[key] == value


def test_reads_what_python_2_wrote() -> None:
    raw = (
        b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x03\x00\x80\xfftbU\x0bfine_labels]K\x05au."
    )
    read = pickles.loads(raw, "here")
    assert read["data"].tolist() == [[0, 128, 255]]
    assert read["fine_labels"] == [5]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "system"),
        (builtins.eval, "eval"),
        (builtins.getattr, "getattr"),
        (subprocess.Popen, "Popen"),
        (np.load, "load"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_refuses_and_runs_nothing(
    function: Any, name: str, nested: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = Calls(function, "open('ran', 'w')" if function is eval else "touch ran")
    content: Any = {"data": [np.zeros(3), ({"deep": [evil]},)]} if nested else evil
    with pytest.raises(ValueError, match=rf"^here: refused to unpickle \w+.*\.{name}, which is not") as error:
        pickles.loads(pickle.dumps(content, protocol), "here")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.array([print], dtype=object)},
        {"data": np.zeros(2, dtype=[("a", "u1"), ("b", "O")])},
        {"data": np.zeros(2, dtype="datetime64[s]")},
        {"data": Calls(np.ndarray, (1,), "u1", b"a")},
        {"data": Calls(np.dtype, "O")},
        {"data": Path("a")},
        [1, 2],
    ],
)
def test_refuses_everything_but_numbers_and_containers(content: Any) -> None:
    with pytest.raises(ValueError, match=r"^here: "):
        pickles.loads(pickle.dumps(content), "here")


@pytest.mark.parametrize(
    "raw", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04}(K\x01u.", b"cnumpy\ndtype\n}b."]
)
def test_a_broken_pickle_is_one_line(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"^here: .*: get the file anew$"):
        pickles.loads(raw, "here")


def test_an_array_whose_bytes_do_not_fit_is_refused() -> None:
    whole = pickle.dumps({"data": np.zeros((4, 4), dtype=np.uint8)}, 2)
    assert whole.count(b"K\x04K\x04\x86") == 1
    with pytest.raises(ValueError, match="not a readable pickle"):
        pickles.loads(whole.replace(b"K\x04K\x04\x86", b"K\x04K\x05\x86"), "here")
