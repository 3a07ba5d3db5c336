"""A folder as a zip, made while it is read: no temporary copy, and no limit at 4 GB."""

import zipfile
from collections.abc import Callable, Iterator, Sequence


class _Pipe:
    """What ZipFile writes to: it cannot seek, so ZipFile adds sizes after the data, and it never fills up."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def write(self, data: bytes, /) -> int:
        self._waiting += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        data = bytes(self._waiting)
        self._waiting.clear()
        return data


def zip_files(read: Callable[[str], Iterator[bytes]], names: Sequence[str], inside: str) -> Iterator[bytes]:
    """The named files below `inside/`, stored uncompressed (weights do not shrink).

    Raises what `read` raises, cutting the stream: FileNotFoundError for what is deleted meanwhile.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            member = zipfile.ZipInfo(f"{inside}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as entry:
                for data in read(name):
                    entry.write(data)
                    yield pipe.take()
            yield pipe.take()
    yield pipe.take()
