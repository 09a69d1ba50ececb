"""Reads the contents of MATLAB files (versions 5 to 7) that the data sets use: numbers, texts and structures of these.

General readers trust the types and sizes that a file states, and crash on some files. This reader checks both against
the bytes of the file.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128  # bytes
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
HDF5 = b"\x89HDF\r\n\x1a\n"
SAVE_AGAIN = "save it again in MATLAB, with save(..., '-v7')"

# Types of elements, from "MAT-File Format" of The MathWorks, chapter 1.
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBERS = {INT8: "i1", 2: "u1", 3: "i2", 4: "u2", INT32: "i4", UINT32: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {INT8: 8, 2: 8, 4: 16, 16: 8, 17: 16, 18: 32}  # bits per code unit of UTF
CLASSES = {1: "cells", 3: "an object", 5: "a sparse matrix", 16: "a function", 17: "an object"}  # not read
STRUCTURE, CHARACTERS, NUMERIC = 2, 4, range(6, 16)
COMPLEX = 0x800

# Bounds, several times what PASCAL-Part needs: 60 objects of 20 parts with masks of 500x500, in nested structures.
LARGEST = 2**29  # bytes of all decompressed data
MOST_ELEMENTS = 10**5
DEEPEST = 8
LONGEST_TEXT = 1000


def read(data: bytes, variable: str) -> np.ndarray:
    """Reads one variable of the file whose bytes are `data`.

    Numbers keep their stored type and are read-only; a text is an array of strings, one per row; a structure is an
    array of records. Raises ValueError, struct.error or zlib.error for other contents and for a truncated or damaged
    file.
    """
    order, budget, room = _byte_order(data), iter(range(MOST_ELEMENTS)), LARGEST
    variables = _Elements(memoryview(data)[HEADER:], order, budget)
    while variables:
        kind, content = variables.next()
        if kind == COMPRESSED:
            content = _decompressed(content, room)
            room -= len(content)
            kind, content = _Elements(content, order, budget).next()
        if kind != MATRIX:
            raise ValueError(f"it has an element of type {kind} where a variable should be")
        elements = _Elements(content, order, budget)
        flags, shape, name = _description(elements)
        if name == variable:
            return _value(elements, flags, shape, 1)
    raise ValueError(f"it has no variable {variable}")


class _Elements:
    """Iterates over the elements in a part of a file; `budget` counts the elements left for the whole file."""

    def __init__(self, data: bytes | memoryview, order: str, budget: Iterator[int]):
        self.data, self.order, self.budget = memoryview(data), order, budget
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def next(self) -> tuple[int, memoryview]:
        """Returns type and contents of the next element."""
        if next(self.budget, None) is None:
            raise ValueError(f"it has more than {MOST_ELEMENTS} elements")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.at)
        start = self.at + 8
        if kind >> 16:  # a small element: up to four bytes in the tag itself, after type and size of two bytes each
            kind, size, start = kind & 0xFFFF, kind >> 16, self.at + 4
            if size > 4:
                raise ValueError(f"it has a small element of {size} bytes")
            self.at += 8
        else:
            self.at = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(self.data):
            raise ValueError(f"an element of {size} bytes is cut off after {len(self.data) - start}")
        return kind, self.data[start : start + size]

    def integers(self, kind: int) -> list[int]:
        """Reads the next element, which must have this type."""
        found, content = self.next()
        if found != kind or len(content) % 4:
            raise ValueError(
                f"it has an element of type {found} and {len(content)} bytes where integers of type {kind} should be"
            )
        return np.frombuffer(content, self.order + NUMBERS[kind]).tolist()

    def text(self) -> str:
        """Reads the next element, a name."""
        kind, content = self.next()
        if kind not in TEXTS:
            raise ValueError(f"it has an element of type {kind} where a name should be")
        return bytes(content).decode("latin-1")


def _byte_order(data: bytes) -> str:
    if not data:
        raise ValueError("it is empty")
    if data[512:].startswith(HDF5) or data.startswith(HDF5):
        raise ValueError(f"it has version 7.3, which is HDF5; {SAVE_AGAIN}")
    if len(data) >= 20 and 0 in data[:4]:
        raise ValueError(f"it has version 4 or is not a MATLAB file; {SAVE_AGAIN}")
    order = BYTE_ORDERS.get(data[126:HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file")
    (version,) = struct.unpack_from(f"{order}H", data, 124)
    if version != 0x100:
        raise ValueError(f"it has the unknown version {version:#x}; {SAVE_AGAIN}")
    return order


def _decompressed(content: memoryview, room: int) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(content, room + 1)  # + 1, since 0 would mean no limit
    if len(data) > room:
        raise ValueError(f"it unpacks to more than {LARGEST} bytes")
    if not stream.eof:
        raise ValueError("a compressed variable is cut off")
    return data


def _description(elements: _Elements) -> tuple[int, tuple[int, ...], str]:
    """Reads flags, shape and name of a matrix; its values follow."""
    flags, shape, name = elements.integers(UINT32), tuple(elements.integers(INT32)), elements.text()
    if len(flags) != 2 or not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise ValueError(f"a matrix has {len(flags)} flags and the shape {shape}")
    return flags[0], shape, name


def _value(elements: _Elements, flags: int, shape: tuple[int, ...], depth: int) -> np.ndarray:
    category = flags & 0xFF
    if category == STRUCTURE:
        return _structure(elements, shape, depth)
    if category not in (CHARACTERS, *NUMERIC) or flags & COMPLEX:
        other = CLASSES.get(category, f"values of class {category}")
        raise ValueError(f"it has {'complex numbers' if category in NUMERIC else other}")
    kind, content = elements.next()
    return (_texts if category == CHARACTERS else _numbers)(kind, content, shape, elements.order)


def _structure(elements: _Elements, shape: tuple[int, ...], depth: int) -> np.ndarray:
    """Reads records of `shape` whose fields are arrays."""
    (length,) = elements.integers(INT32)
    joined = elements.text()
    if depth > DEEPEST or length < 1 or not joined or len(joined) % length:
        raise ValueError(f"a structure at depth {depth} has {len(joined)} letters in names of {length}")
    names = [joined[start : start + length].split("\0")[0] for start in range(0, len(joined), length)]
    count = math.prod(shape)
    if count * len(names) > (len(elements.data) - elements.at) // 8:  # each field has a tag of 8 bytes
        raise ValueError(
            f"a structure of shape {shape} with {len(names)} fields has no room in {len(elements.data)} bytes"
        )
    records = np.empty(count, [(name, object) for name in names])
    for record in records:
        for name in names:
            record[name] = _field(elements, depth)
    return records.reshape(shape, order="F")


def _field(elements: _Elements, depth: int) -> np.ndarray:
    kind, content = elements.next()
    if kind != MATRIX:
        raise ValueError(f"it has an element of type {kind} where a matrix should be")
    if not content:  # an empty matrix may be written so
        return np.zeros((0, 0))
    inner = _Elements(content, elements.order, elements.budget)
    flags, shape, _ = _description(inner)
    return _value(inner, flags, shape, depth + 1)


def _numbers(kind: int, content: memoryview, shape: tuple[int, ...], order: str) -> np.ndarray:
    if kind not in NUMBERS:
        raise ValueError(f"it has an element of type {kind} where numbers should be")
    dtype = np.dtype(order + NUMBERS[kind])
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"a matrix of {dtype} and shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape, order="F")


def _texts(kind: int, content: memoryview, shape: tuple[int, ...], order: str) -> np.ndarray:
    if kind not in TEXTS or len(content) > LONGEST_TEXT:
        raise ValueError(f"it has an element of type {kind} and {len(content)} bytes where a text should be")
    bits = TEXTS[kind]
    encoding = {8: "utf-8", 16: "utf-16", 32: "utf-32"}[bits] + ("" if bits == 8 else "-le" if order == "<" else "-be")
    text = bytes(content).decode(encoding)
    rows = shape[0]
    return np.array([text[row::rows] for row in range(rows if text else 0)], str)
