"""Names and contents of uploaded files: what can be kept, and what nobody could read."""

import re
import tarfile
import zipfile
import zlib
from pathlib import Path

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".text")
TAR, TAR_GZIP = ".tar", (".tar.gz", ".tgz")
# What compressed files begin with, by the ending that they are read by.
BEGINNINGS = {
    **dict.fromkeys((f"{end}.gz" for end in TEXTS), b"\x1f\x8b"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), b"BZh"),
    **dict.fromkeys((".tar.xz", ".txz"), b"\xfd7zXZ\0"),
}
ENDINGS = (*TAR_GZIP, *BEGINNINGS, *TEXTS, ".parquet", ".zip", TAR)
NAME_BYTES = 255
HEAD_BYTES = 64 * 1024
PARQUET = b"PAR1"
GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with gzip's own header

_SEPARATORS = re.compile(r"[/\\]")


def clean_file_name(name: str) -> str:
    """A file's name without directories and without characters that cannot be seen, short enough for every store."""
    seen = "".join(letter for letter in _SEPARATORS.split(name)[-1] if letter.isprintable()).strip(" .")
    end = ending(seen)
    stem = seen[: len(seen) - len(end)].encode()[: NAME_BYTES - len(end)].decode(errors="ignore")
    return stem + seen[len(seen) - len(end) :]


def ending(name: str) -> str:
    """The ending that tells how a file is read, in lower case; empty when it is none that is known."""
    lower = name.lower()
    return next((end for end in ENDINGS if lower.endswith(end) and len(lower) > len(end)), "")


def unreadable(path: Path, end: str) -> str:
    """Why nobody could read a file with this ending, empty when somebody could. Blocks. Raises OSError."""
    if end in TEXTS:
        return _not_text(path)
    if end == ".parquet":
        return "" if _is_parquet(path) else "it is not a Parquet file"
    if end == ".zip":
        return "" if zipfile.is_zipfile(path) else "it is not a ZIP archive, or is cut off"
    if end in BEGINNINGS:
        return "" if _begins(path, BEGINNINGS[end]) else f"it is not compressed as {end} says, or is empty"
    return "" if _is_tar(path, compressed=end in TAR_GZIP) else "it is not a TAR archive"


def _not_text(path: Path) -> str:
    """Single lines that are not UTF-8 are problems of rows; here a file counts whose lines mostly are not."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        return "it is not text in UTF-8 (it holds NUL bytes); save it as UTF-8"
    lines = head.split(b"\n")
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    bad = sum(1 for line in whole if not _is_utf8(line, cut_off=line is lines[-1]))
    return "it is not text in UTF-8; save it as UTF-8" if 2 * bad > len(whole) else ""


def _is_utf8(line: bytes, *, cut_off: bool) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return cut_off and error.reason == "unexpected end of data"
    return True


def _is_tar(path: Path, *, compressed: bool) -> bool:
    """By its first block; tarfile itself would take a whole header into memory, however long it says it is."""
    with path.open("rb") as file:
        block = file.read(HEAD_BYTES)
    try:
        if compressed:
            block = zlib.decompressobj(GZIP_WINDOW).decompress(block, tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(block[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True  # of an empty archive
    except (tarfile.HeaderError, zlib.error):
        return False
    return True


def _begins(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        starts = file.read(len(PARQUET)) == PARQUET
        file.seek(max(0, path.stat().st_size - len(PARQUET)))
        return starts and file.read() == PARQUET
