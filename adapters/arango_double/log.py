"""What the double answered, kept: one append-only file of changes, read again at the start.

A record is a line of JSON, `[tick, changes]`, written by one `write` before the answer is sent; so it is there after
kill -9. A torn last line, which nobody was answered for, is cut off. Records of documents carry the documents as lines
of their own after the header, so that reading them costs nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

Change = list[Any]  # ["put", database, collection, keys], ["del", ...], or a change of the catalogue


class Log:
    """One process at a time may hold a folder: a second one is refused with BlockingIOError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "changes.log"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self) -> Iterator[tuple[int, list[Change], list[bytes]]]:
        """(tick, changes, documents in the order of the keys in the changes) of each whole record."""
        good = 0
        with self.path.open("rb") as lines:
            for header in lines:
                if not header.endswith(b"\n"):
                    break
                tick, changes, count = orjson.loads(header)
                documents = [lines.readline() for _ in range(count)]
                if documents and not documents[-1].endswith(b"\n"):
                    break
                good = good + len(header) + sum(map(len, documents))
                yield tick, changes, [document[:-1] for document in documents]
        os.ftruncate(self._file, good)

    def append(self, tick: int, changes: Sequence[Change], documents: Sequence[bytes], *, sync: bool) -> None:
        header = orjson.dumps([tick, changes, len(documents)])
        record = memoryview(b"\n".join([header, *documents, b""]))
        while record:
            record = record[os.write(self._file, record) :]
        if sync:
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
