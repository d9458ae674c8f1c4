"""Archives from strangers, unpacked with limits: nothing is written outside, and no bomb fills the disk."""

import gzip
import lzma
import math
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from modelkit.datasets.compressed import OPENERS, XZ_MEMORY_BYTES, Forwards
from modelkit.errors import InvalidDataset, Problem

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
GZIP = (".gz",)
COPY_BYTES = 1 << 20
MAX_READ_BYTES = 4 << 20
MAX_HEADER_READS = 1000
MAX_ZIP_ENTRY_BYTES, MAX_TAR_ENTRY_BYTES = 1024, 4096  # what there is of a member beside its content
MACOS = "__MACOSX/"
# Python unpacks these piece by piece; of others a few bytes may become gigabytes of memory at once.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What libraries raise of an archive that is damaged, cut off, encrypted, of an unknown kind, or nonsense.
TROUBLE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, IndexError, OverflowError),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Files, bytes in all, and how many times larger than the archive the content may be."""

    files: int = 10_000
    bytes: int = 64 << 30
    ratio: int = 200
    free_bytes: int = 64 << 20  # so much may come of the smallest archive, whatever the ratio


class BinaryReader(Protocol):
    """What can be read in pieces."""

    def read(self, size: int = ..., /) -> bytes:
        """At most size bytes; none at the end."""


class UnsafeArchive(InvalidDataset):
    """An archive could do harm."""

    reason = "UNSAFE_ARCHIVE"


def is_archive(path: Path) -> bool:
    """Whether a file is an archive or compressed, by its name."""
    return path.name.lower().endswith((*ZIP, *TAR, *GZIP))


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Writes the plain files of an archive into an empty folder.

    Absolute and climbing paths, links, devices, too many files, too many bytes and content far larger than the archive
    are refused. Raises UnsafeArchive, or InvalidDataset when it cannot be read; what was written so far stays.
    """
    writer = _Writer(archive, folder, limits or Limits())
    name = archive.name.lower()
    kind: Callable[[Path, _Writer], None] = (
        _unpack_zip if name.endswith(ZIP) else _unpack_tar if name.endswith(TAR) else _unpack_gzip
    )
    try:
        kind(archive, writer)
    except TROUBLE as error:
        if isinstance(error, lzma.LZMAError) and str(error).startswith("Memory usage limit"):
            words = f"needs more than {XZ_MEMORY_BYTES >> 20} MiB of memory to unpack; pack it with xz -9 or less"
            raise writer.refusal(words) from error
        raise InvalidDataset(Problem("dataset", f"{archive.name} cannot be unpacked: {error}")) from error


class _Writer:
    """Writes members into a folder for as long as they keep to the limits."""

    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self._archive, self._folder, self.limits = archive, folder, limits
        self._files = 0
        size = archive.stat().st_size
        self._left = min(limits.bytes, max(limits.free_bytes, size * limits.ratio))

    def count(self) -> None:
        """Counts a member of any kind."""
        self._files += 1
        if self._files > self.limits.files:
            raise self.refusal(f"holds more than {self.limits.files} files")

    def announce(self, size: int) -> None:
        """Refuses a member whose stated size is too large, before anything of it is read."""
        if size > self._left:
            raise self._too_large()

    def write(self, name: str, source: BinaryReader) -> None:
        """Writes a member."""
        target = self._folder.joinpath(*self._parts(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while block := source.read(COPY_BYTES):
                self._left -= len(block)
                if self._left < 0:
                    raise self._too_large()
                file.write(block)

    def within_limits(self, stream: Any) -> Forwards:
        """What an archive is unpacked to, its headers and what is passed over in it included."""
        return Forwards(stream, self._left + self.limits.files * MAX_TAR_ENTRY_BYTES, self._too_large())

    def refusal(self, words: str) -> UnsafeArchive:
        """The complaint."""
        return UnsafeArchive(Problem("dataset", f"{self._archive.name} {words}"))

    def _too_large(self) -> UnsafeArchive:
        return self.refusal("unpacks to far more than its size; unpack it yourself and give the directory")

    def _parts(self, name: str) -> tuple[str, ...]:
        name = name.encode(errors="replace").decode()  # of a name that is not UTF-8
        path = PurePosixPath(name.replace("\\", "/"))
        bad = path.is_absolute() or ".." in path.parts or "\0" in name or ":" in (path.parts or ("",))[0]
        if bad or not path.parts or any(len(part.encode()) > 255 for part in path.parts):
            raise self.refusal(f"holds a file named {name[:80]!r}, which leads outside")
        return path.parts


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    files = writer.limits.files
    with archive.open("rb") as stream:
        reads: Any = _SmallReads(stream, files * MAX_ZIP_ENTRY_BYTES, writer.refusal(f"holds more than {files} files"))
        opened = zipfile.ZipFile(reads)
        for member in opened.infolist():
            writer.count()
            if member.filename.startswith(MACOS):
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                continue
            if kind and not stat.S_ISREG(kind):
                raise writer.refusal(f"holds {member.filename[:80]!r}, which is a link or a device")
            if member.compress_type not in ZIP_METHODS:
                words = "is compressed in a way that is not read; pack it with the usual method (deflate)"
                raise writer.refusal(f"holds {member.filename[:80]!r}, which {words}")
            writer.announce(member.file_size)
            with opened.open(member) as source:
                _write_new(writer, member.filename, source)


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    opener = OPENERS.get(archive.name.lower().rpartition(".")[2])
    with opener(archive) if opener else archive.open("rb") as opened_file:
        stream = writer.within_limits(opened_file) if opener else opened_file
        reads: Any = _SmallReads(stream, MAX_READ_BYTES, writer.refusal("holds a header that is too large"))
        reads.left = MAX_HEADER_READS
        opened = tarfile.open(fileobj=reads, mode="r:")  # noqa: SIM115 - it owns nothing, the stream is closed
        while member := _next_member(opened, reads):
            writer.count()
            if member.name.startswith(MACOS) or member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise writer.refusal(f"holds {member.name[:80]!r}, which is a link or a device")
            writer.announce(member.size)
            source = opened.extractfile(member)
            assert source is not None
            _write_new(writer, member.name, source)


def _next_member(opened: tarfile.TarFile, reads: "_SmallReads") -> tarfile.TarInfo | None:
    """The next member; one whose header goes on and on is refused, because tarfile keeps all of it."""
    reads.left = MAX_HEADER_READS
    member = opened.next()
    reads.left = math.inf
    return member


class _SmallReads:
    """A stream from which a header or a list of members of any size cannot be taken into memory.

    left is how many more reads are let through.
    """

    def __init__(self, stream: Any, most: int, refusal: UnsafeArchive) -> None:
        self._stream, self._most, self._refusal = stream, most, refusal
        self.left = math.inf
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, lambda: True

    def read(self, size: int = -1) -> bytes:
        """At most as many bytes as are let through."""
        data: bytes = b"" if size > self._most else self._stream.read(size if size >= 0 else self._most + 1)
        self.left -= 1
        if max(size, len(data)) > self._most or self.left < 0:
            raise self._refusal
        return data


def _unpack_gzip(archive: Path, writer: _Writer) -> None:
    with gzip.open(archive) as source:
        writer.write(archive.name[: -len(GZIP[0])], source)


def _write_new(writer: _Writer, name: str, source: BinaryReader) -> None:
    try:
        writer.write(name, source)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise writer.refusal(f"holds {name[:80]!r} twice, or as file and directory") from error
