"""Reads dictionaries that numpy pickled, without running anything that a file asks for.

CALVIN keeps annotations and scene ranges as pickled dictionaries inside .npy files. Unpickling can run any code a file
names, so they are read by an unpickler that admits plain containers and numpy arrays and nothing else.
"""

from __future__ import annotations

import pickle
import unicodedata
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy._core import multiarray

from roboflamingo.data.errors import DataError


class _Encode:
    """Stands for `_codecs.encode`, through which pickle protocols 0 to 2 carry bytes; for no other encoding."""

    __slots__ = ()  # a file cannot change an object that has no attributes

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which plain data never needs")
        return text.encode("latin-1")


class _FromBuffer:
    """Stands for numpy's `_frombuffer`, through which pickle protocol 5 carries arrays."""

    __slots__ = ()

    def __call__(
        self, buffer: Any, dtype: Any, shape: Any, order: str, axis_order: tuple[int, ...] | None = None
    ) -> np.ndarray:
        array = np.frombuffer(buffer, dtype=dtype)
        if order == "K" and axis_order is not None:
            return array.reshape(shape, order="C").transpose(axis_order)
        return array.reshape(shape, order="F" if order == "F" else "C")


_CORES = ("numpy.core", "numpy._core")  # numpy 1 and numpy 2

ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "bytes"): bytes for module in ("builtins", "__builtin__")},  # the latter in protocols 0 to 2
    ("_codecs", "encode"): _Encode(),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): multiarray.scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _FromBuffer() for core in _CORES},
}
"""All that a file may name, and what it gets. None of it runs code or opens anything."""


class PlainUnpickler(pickle.Unpickler):
    """Admits dict, list, tuple, str, bytes, int, float, bool, None and numpy arrays of them; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        """The few constructors that plain data need.

        Raises:
            pickle.UnpicklingError: for any other.
        """
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return ADMITTED[module, name]


def load_plain_dict(path: Path) -> dict[Any, Any]:
    """The dictionary that `np.save(path, dictionary)` wrote, read without running code from the file.

    Raises:
        DataError: the file is missing, broken, holds something else than a dictionary, or asks for code.
    """
    try:
        with path.open("rb") as file:
            _read_object_header(file)
            content = PlainUnpickler(file).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # a damaged pickle can make numpy and the unpickler raise almost anything
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    content = content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where a dictionary is expected")
    return content


def _read_object_header(file: IO[bytes]) -> None:
    """Moves past the .npy header, so that the pickle follows."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version in ((2, 0), (3, 0)):  # 3.0 differs in names of fields alone, which an array of objects has not
        _, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f".npy version {version} is not known")
    if not dtype.hasobject:
        raise ValueError(f"it is an array of {dtype}, not a dictionary")


def text_of(value: Any) -> str:
    """The text that a value stands for: a str, bytes in UTF-8, or a list or array of just one of these.

    Raises:
        ValueError: it is neither, or empty, or holds control characters. Says what it is.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, list | tuple) and len(value) == 1:
        return text_of(value[0])
    if isinstance(value, bytes):
        value = value.decode("utf-8")  # UnicodeDecodeError is a ValueError
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} is no text")
    if not value.strip():
        raise ValueError(f"{value!r} has no words")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\t\n" for letter in value):
        raise ValueError(f"{value!r:.60} is damaged text")
    return str(value)


def whole_number(value: Any) -> int:
    """A number without fraction, as int.

    Raises:
        ValueError: it is something else. Says what it is.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{value!r:.60} is no number")
    if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
        raise ValueError(f"{value!r} is no whole number")
    return int(value)
