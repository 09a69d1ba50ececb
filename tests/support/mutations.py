"""Seeded damage to files: to bytes, texts and JSON values, and to parts of containers, with correct checksums again."""

import contextlib
import gzip
import json
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Damage = Callable[[random.Random, bytes, bytes], bytes]  # (rng, a file, another of its kind) -> the file, damaged

HUGE = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
ODD_TEXTS = (
    *("", "\0", " ", "\n", "\u202e", "\ufeff", "\u2028", "e\u0301", "😀", "İ", "\ud800"),
    *("../..", "/etc/passwd", "\x1b[2J", "a" * 5000, "%s"),
)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 3, 0.5, 1e308, 10**9, 2**63, -(10**30), 10**400, math.nan, math.inf, -math.inf),
    *([], {}, [[]], [None], [0] * 3, ["a"], [1] * 20_000, {"name": "x"}, {"": {}}, *ODD_TEXTS),
)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "shift-jis")


def several(*damages: Damage) -> Damage:
    """Applies one to four of these damages, one after the other."""

    def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = rng.choice(damages)(rng, data, other)
        return data

    return damage


def _place(rng: random.Random, data: bytes) -> int:
    """A position; half of the time near the beginning, where headers are."""
    return rng.randrange(min(len(data), rng.choice((16, 256, len(data), len(data)))) or 1) if data else 0


def _block(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 512, 4096)))


def flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if damaged:
            damaged[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.choice((_place(rng, data), max(0, len(data) - rng.randrange(1, 64))))]


def insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice((rng.randbytes(rng.randrange(1, 64)), bytes(rng.randrange(1, 600)))) + data[at:]


def delete(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _block(rng, data)
    return data[:start] + data[end:]


def double(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _block(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def swap(rng: random.Random, data: bytes, other: bytes) -> bytes:
    (start, end), (later, last) = sorted((_block(rng, data), _block(rng, data)))
    return data[:start] + data[later:last] + data[end:later] + data[start:end] + data[last:] if end <= later else data


def overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _block(rng, data)
    return data[:start] + rng.choice((b"\0", b"\xff")) * (end - start) + data[end:]


def number(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replaces some bytes by a number, in either byte order."""
    at, size, value = _place(rng, data), rng.choice((1, 2, 4, 8)), rng.choice(HUGE)
    return data[:at] + (value % 256**size).to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


of_bytes = several(flip, flip, cut, insert, delete, double, swap, overwrite, number, number, splice)


def of_lines(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Drops, repeats, moves or lengthens lines, and changes line ends and encodings."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    odd = lines[at][: rng.randrange(len(lines[at]) + 1)] + rng.choice(ODD_TEXTS) + lines[at]
    ways = {
        "drop": lines[:at] + lines[at + 1 :],
        "repeat": lines[: at + 1] + lines[at:],
        "move": [*lines[at:], *lines[:at]],
        "odd": [*lines[:at], odd, *lines[at + 1 :]],
        "new": [*lines[:at], rng.choice(ODD_TEXTS), *lines[at:]],
        "case": [*lines[:at], lines[at].upper(), *lines[at + 1 :]],
    }
    text = rng.choice(("\n", "\n", "\r\n", "\r", "\u2028")).join(ways[rng.choice(list(ways))])
    return _encoded(rng, text)


def _encoded(rng: random.Random, text: str) -> bytes:
    encoding = rng.choice(("utf-8",) * 8 + ENCODINGS)
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def of_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Changes types and sizes of values, drops, adds and repeats keys, and nests brackets."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(rng, data, other)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = changed(rng, value)
    return _written(rng, value)


def _written(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 2)))
    if rng.random() < 0.05:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return _encoded(rng, text)


def changed(rng: random.Random, value: Any) -> Any:
    """A JSON value with a change in one place, at any depth."""
    deeper = isinstance(value, dict | list) and value and rng.random() < 0.85
    if not deeper:
        return _instead_of(rng, value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(list(keys))
    if rng.random() < 0.2:
        if isinstance(value, list):
            longer = [*value, rng.choice(ODD_VALUES)]
            return rng.choice((value[:key] + value[key + 1 :], value * 2, longer, value[::-1]))
        without = {name: part for name, part in value.items() if name != key}
        renamed = {**without, rng.choice(ODD_TEXTS): value[key]}
        longer = {**value, rng.choice(ODD_TEXTS): rng.choice(ODD_VALUES)}
        return rng.choice((without, renamed, longer))
    new = changed(rng, value[key])
    return {**value, key: new} if isinstance(value, dict) else [*value[:key], new, *value[key + 1 :]]


def _instead_of(rng: random.Random, value: Any) -> Any:
    ways = [rng.choice(ODD_VALUES), [value], {"name": value}, "a" if isinstance(value, dict | list) else str(value)]
    if isinstance(value, int | float):
        ways += [-value, value + 1, value // 2, value * 10]
    if isinstance(value, str):
        ways += [value + rng.choice(ODD_TEXTS), value.upper(), value[:-1]]
    if rng.random() < 0.1:
        for _ in range(rng.choice((20, 300))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(ways)


def inside(
    parts: Callable[[bytes], tuple[list[Any], Callable[[list[Any]], bytes]]], damage: Callable[..., list[Any]]
) -> Damage:
    """Damages parts of a container and puts it together correctly; damages bytes if it is no valid container."""
    invalid = (ValueError, IndexError, KeyError, struct.error, zlib.error, OSError, EOFError, OverflowError)

    def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
        with contextlib.suppress(*invalid):
            taken, join = parts(data)
            return join(damage(rng, taken, parts(other)[0]))
        return of_bytes(rng, data, other)

    return damaged


def _some_part(rng: random.Random, parts: list[bytes], others: list[bytes], damage: Damage = of_bytes) -> list[bytes]:
    at = rng.randrange(len(parts))
    return [*parts[:at], damage(rng, parts[at], rng.choice(others)), *parts[at + 1 :]]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        (size,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + size]
        yield kind, zlib.decompress(content) if kind == b"IDAT" else content
        at += 12 + size


def _png(data: bytes) -> tuple[list[Any], Callable[[list[Any]], bytes]]:
    def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
        written = data[:8]
        for kind, content in chunks:
            content = zlib.compress(content) if kind == b"IDAT" else content
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            written += struct.pack(">I", len(content)) + kind + content + checksum
        return written

    return list(_chunks(data)), join


def _some_chunk(
    rng: random.Random, chunks: list[tuple[bytes, bytes]], others: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    kinds = (b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"abCd")
    extra = (rng.choice(kinds), rng.randbytes(26))
    damaged = [of_bytes(rng, content, content), of_bytes(rng, content, content), flip(rng, content, content)]
    before, new, after = chunks[:at], (kind, rng.choice((content, *damaged))), chunks[at + 1 :]
    replaced = [*before, new, *after]
    return rng.choice((replaced, replaced, [*before, extra, *chunks[at:]], [*before, rng.choice(others), *after]))


def _gzip(data: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    """The blocks of a tar file, whose headers get their checksums."""

    def join(blocks: list[bytes]) -> bytes:
        content = b"".join(_summed(block) if block[257:262] == b"ustar" else block for block in blocks)
        return gzip.compress(content, mtime=0)

    content = gzip.decompress(data)
    return [content[at : at + 512] for at in range(0, len(content), 512)], join


def _summed(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % (sum(blank) % 8**6) + header[156:]


def _some_blocks(rng: random.Random, blocks: list[bytes], others: list[bytes]) -> list[bytes]:
    headers = [index for index, block in enumerate(blocks) if block[257:262] == b"ustar"]
    at = rng.choice(headers) if headers and rng.random() < 0.8 else rng.randrange(len(blocks))
    before, block, after = blocks[:at], blocks[at], blocks[at + 1 :]
    number = b"%011o\0" % rng.choice((0, 1, 511, 10**6, 8**11 - 1))
    size = rng.choice((number, b"\x80" + rng.randbytes(11), b"\xff" * 12))
    kind = bytes([rng.choice(tuple(b"01234567gxLKSDNVX\0"))])
    name = of_bytes(rng, block[:100], block)[:100].ljust(100, b"\0")
    ways = (
        [*before, block[:124] + size + block[136:], *after],
        [*before, block[:156] + kind + block[157:], *after],
        [*before, name + block[100:], *after],
        [*before, flip(rng, block, block), *after],
        [*before, *after],
        [*before, rng.choice(others), block, *after],
        [*before, block],
    )
    return rng.choice(ways)


def _mat(data: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    """The header of a MATLAB file, and its variables, which are compressed."""
    parts, at = [data[:128]], 128
    while at < len(data):
        _, size = struct.unpack_from("<II", data, at)
        parts.append(zlib.decompress(data[at + 8 : at + 8 + size]))
        at += 8 + size

    def join(parts: list[bytes]) -> bytes:
        packed = [zlib.compress(part) for part in parts[1:]]
        return parts[0] + b"".join(struct.pack("<II", 15, len(part)) + part for part in packed)

    return parts, join


def _npy(data: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    (size,) = struct.unpack_from("<H", data, 8)
    parts = [data[10 : 10 + size], data[10 + size :]]
    return parts, lambda parts: data[:8] + struct.pack("<H", len(parts[0])) + b"".join(parts)


def _npy_header(rng: random.Random, parts: list[bytes], others: list[bytes]) -> list[bytes]:
    types = (
        *("'<f4'", "'>f4'", "'<f8'", "'|u1'", "'<i8'", "'|O'", "'<U4'", "'<M8[s]'", "'|b1'", "'<c8'", "'|V4'"),
        *("[('a','<f4')]", "'<f2'", "None"),
    )
    shapes = (
        *("()", "(1,)", "(0, 5)", "(-1, 4)", "(10**9,)", "(1000000000, 1000000000)", "(6, 8, 1)", "(8, 6)"),
        *("(48,)", "((((", "True", "(6, 8.0)"),
    )
    order = rng.choice(("False", "True", "True", "1"))
    header = f"{{'descr': {rng.choice(types)}, 'fortran_order': {order}, 'shape': {rng.choice(shapes)}, }}\n".encode()
    transposed = [parts[0].replace(b"False", b"True"), parts[1]]
    return rng.choice(([header, parts[1]], transposed, _some_part(rng, parts, others)))


def _safetensors(data: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    (size,) = struct.unpack_from("<Q", data)
    return [data[8 : 8 + size], data[8 + size :]], lambda parts: struct.pack("<Q", len(parts[0])) + b"".join(parts)


def _tensors(rng: random.Random, parts: list[bytes], others: list[bytes]) -> list[bytes]:
    return [of_json(rng, *(parts[0], others[0])), parts[1]] if rng.random() < 0.7 else _some_part(rng, parts, others)


of_png = several(of_bytes, *[inside(_png, _some_chunk)] * 3)
of_archive = several(of_bytes, *[inside(_gzip, _some_blocks)] * 3)
of_mat = several(of_bytes, *[inside(_mat, _some_part)] * 4)
of_npy = several(of_bytes, inside(_npy, _npy_header))
of_safetensors = several(of_bytes, *[inside(_safetensors, _tensors)] * 3)
of_text = several(of_lines, of_lines, of_bytes)
of_json_file = several(*[of_json] * 5, of_bytes)


def _some_json_line(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return b"\n".join(_some_part(rng, data.split(b"\n"), [b"{}"], of_json))


of_log = several(of_lines, of_bytes, _some_json_line)
