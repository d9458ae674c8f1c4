"""Streams stored files to callers: one from an offset, or several as a ZIP that is made on the way."""

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Iterable

from modelkit.checkpoints import FileEntry
from servicekit.errors import Internal
from servicekit.objects import ObjectStore

PIECE_BYTES = 1 << 20


class _Sink(io.RawIOBase):
    """What a ZIP is written to: pieces that are taken away as they come."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> Iterable[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces


async def file_pieces(store: ObjectStore, key: str, *, size: int, sha256: str, offset: int = 0) -> AsyncIterator[bytes]:
    """A stored file from an offset. Read from its start it is compared with its hash.

    Raises Internal at the end of one that is damaged, and what the store raises.
    """
    digest, position = hashlib.sha256(), offset
    async for piece in store.read(key, start=offset):
        digest.update(piece)
        position += len(piece)
        yield piece
    if position != size or (offset == 0 and digest.hexdigest() != sha256):
        raise Internal(
            f"{key.rpartition('/')[2]} is damaged in the object store; export it again", reason="DATA_DAMAGED"
        )


async def zip_pieces(store: ObjectStore, prefix: str, files: Iterable[FileEntry]) -> AsyncIterator[bytes]:
    """A ZIP of stored files, not compressed: weights do not shrink. No file is in memory as a whole.

    Raises Internal at the end of a file that is damaged, and what the store raises; the ZIP is not whole then.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in files:
            key = f"{prefix}/{file.path}"
            with archive.open(zipfile.ZipInfo(file.path), "w", force_zip64=True) as entry:
                async for piece in file_pieces(store, key, size=file.size, sha256=file.sha256):
                    entry.write(piece)
                    for part in sink.take():
                        yield part
    for part in sink.take():
        yield part
