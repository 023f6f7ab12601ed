"""Reads the CIFAR data sets' pickles without running anything that is in them.

A pickle is a program: what it may do is what `find_class` hands it. This one is handed two stand-ins for
numpy's array and dtype, which are read with plain Python here, and a bytes encoder; lists, dictionaries,
strings and numbers need nothing. Every other name is refused before it is looked up.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Dtype:
    """Stands in for numpy.dtype; one-dimensional numbers only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if text.lstrip("|<=>") not in ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
            raise pickle.UnpicklingError(f"an array of type {text!r}, where only numbers are read")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if byte_order == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Stands in for numpy.ndarray; `value` holds the array once its state was read."""

    def __init__(self) -> None:
        self.value: NDArray[Any] = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> "_Array":
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        flat = np.frombuffer(data, dtype=dtype.value)
        self.value = flat.reshape(tuple(shape), order="F" if order == "F" else "C")
        return self


def _encode(text: str, encoding: str = "latin1", *_: object) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, where only latin1 is read")
    return text.encode("latin1")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str) -> _Array:
    return _Array().fill(raw, dtype, shape, order)


def _array_type(*_: object) -> None:
    raise pickle.UnpicklingError("an array built from a buffer")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _array_type,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle._Unpickler):
    """Python's own, as fast here as C's, whose list of what was seen grows to any index that a file names."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"{module}.{name}, which is not a numpy array, a string or a container"
            ) from None


def loads(raw: bytes, where: str) -> dict[str, Any]:
    """The dictionary pickled in `raw`, by Python 2 or 3; numpy arrays of numbers come as arrays.

    Raises ValueError, naming `where`, on anything but arrays of numbers, strings, numbers and containers,
    and on what is no pickle at all. Nothing named in the pickle is imported or called.
    """
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{where}: refused to unpickle {error}: get the file anew") from None
    except Exception as error:  # A malformed pickle raises whatever its broken step happens to raise.
        raise ValueError(
            f"{where}: not a readable pickle ({type(error).__name__}): get the file anew"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds a {type(content).__name__}, not a dictionary: get the file anew")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: item.value
        if isinstance(item, _Array)
        else item
        for key, item in content.items()
    }
