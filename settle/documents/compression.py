"""Compressed files of text, unpacked as they are read."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSIONS = (".gz", ".zst")


def open_unpacked(path: Path, compression: str) -> BinaryIO:
    """The bytes of a file, unpacked where `compression` is one of COMPRESSIONS. Raises OSError."""
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".zst":
        import zstandard

        unpacked = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True, read_across_frames=True)
        return cast(BinaryIO, unpacked)
    return path.open("rb")


def damage_error(compression: str) -> type[Exception]:
    """The exception, beside EOFError, that reading damaged packed bytes raises."""
    if compression == ".zst":
        import zstandard

        return zstandard.ZstdError
    return zlib.error
