"""A job's metrics as TensorBoard's event file: records of length, checksum and a small protocol buffer.

Written by hand: it is forty lines, and the writers there are bring numpy and protobuf into the Celery
process. Fields and checksum are those of tensorflow's event.proto, summary.proto and record_writer.cc.
"""

import struct
from collections.abc import Iterable, Iterator

POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed
Row = tuple[int, float, dict[str, float]]  # step, seconds since 1970, value by tag


def _table() -> tuple[int, ...]:
    found = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (POLYNOMIAL if number & 1 else 0)
        found.append(number)
    return tuple(found)


TABLE = _table()


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def event_file(rows: Iterable[Row], began: float) -> Iterator[bytes]:
    """The file, a record at a time."""
    yield _record(_double(1, began) + _text(3, b"brain.Event:2"))
    for step, at, values in rows:
        summary = b"".join(_text(1, _text(1, tag.encode()) + _float(2, values[tag])) for tag in values)
        yield _record(_double(1, at) + _whole(2, step) + _text(5, summary))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _whole(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
