"""The manifest of a checkpoint: its files with sizes and hashes, and what it came from. Only what verifies exists.

The manifest is canonical JSON (sorted keys, no spaces) with its own hash inside, written last and in one step.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from modelkit.errors import InvalidCheckpoint, Problem

MANIFEST = "manifest.json"
VERSION = 1
THREADS = 4


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a checkpoint: path relative to its directory with forward slashes, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of and where it came from."""

    files: tuple[FileEntry, ...]
    base_model: str
    attempt: int
    step: int

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        """Canonical JSON; equal manifests give equal bytes."""
        content = self._content()
        return _canonical(content | {"sha256": _digest(content)})

    def _content(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "base_model": self.base_model,
            "attempt": self.attempt,
            "step": self.step,
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in self.files],
        }

    @classmethod
    def from_json(cls, raw: bytes) -> "Manifest":
        """Reads a manifest. Raises InvalidCheckpoint when it is damaged or names a path that leaves the directory."""
        try:
            content = orjson.loads(raw)
            digest = content.pop("sha256")
            files = tuple(FileEntry(file["path"], file["size"], file["sha256"]) for file in content["files"])
            manifest = cls(files, content["base_model"], content["attempt"], content["step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged([f"{MANIFEST} is damaged: {type(error).__name__}"]) from None
        if content.get("version") != VERSION:
            raise _damaged([f"{MANIFEST} has version {content.get('version')}, this program reads {VERSION}"])
        if digest != _digest(content) or content != manifest._content():
            raise _damaged([f"{MANIFEST} is damaged: its hash does not fit its content"])
        if unsafe := [file.path for file in files if not _is_safe(file.path)]:
            raise _damaged([f"{MANIFEST} names {unsafe[0]!r}, which is not beneath it"])
        return manifest


def build_manifest(directory: Path, *, base_model: str, attempt: int, step: int) -> Manifest:
    """Hashes every file beneath a directory, whatever its depth. Raises OSError."""
    paths = sorted(
        Path(parent, name).relative_to(directory).as_posix()
        for parent, _, names in os.walk(directory)
        for name in names
        if not (Path(parent) == directory and name == MANIFEST)
    )
    return Manifest(tuple(_hash_all(directory, paths)), base_model, attempt, step)


def write_manifest(directory: Path, *, base_model: str, attempt: int, step: int) -> Manifest:
    """Writes the manifest of a whole directory, in one step. Raises OSError."""
    manifest = build_manifest(directory, base_model=base_model, attempt=attempt, step=step)
    temporary = directory / f".{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / MANIFEST)
    return manifest


def verify(directory: Path, wanted: Callable[[str], bool] = lambda _: True) -> Manifest:
    """Compares every file, of some only those whose path is wanted, with the manifest beside it.

    Raises InvalidCheckpoint naming each file that is missing, of another size or of another content.
    """
    try:
        manifest = Manifest.from_json((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise _damaged([f"{directory} has no {MANIFEST}; it was never finished"]) from None
    files = [file for file in manifest.files if wanted(file.path)]
    problems = dict(_compare_sizes(files, {file.path: _size(directory / file.path) for file in files}))
    sound = [file for file in files if file.path not in problems]
    for entry, found in zip(sound, _hash_all(directory, [file.path for file in sound]), strict=True):
        if found.sha256 != entry.sha256:
            problems[entry.path] = f"{entry.path} is damaged: its content does not have the SHA-256 it was saved with"
    if problems:
        raise _damaged([problems[file.path] for file in files if file.path in problems])
    return manifest


def verify_listing(
    manifest: Manifest, sizes: Mapping[str, int], wanted: Callable[[str], bool] = lambda _: True
) -> None:
    """Compares a listing (relative path: size) with a manifest, of some files only those whose path is wanted.

    Raises InvalidCheckpoint naming the files.
    """
    if problems := dict(_compare_sizes([file for file in manifest.files if wanted(file.path)], sizes)):
        raise _damaged(list(problems.values()))


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_all(directory: Path, paths: list[str]) -> Iterable[FileEntry]:
    def entry(path: str) -> FileEntry:
        return FileEntry(path, (directory / path).stat().st_size, sha256_of(directory / path))

    if len(paths) < 2:
        return [entry(path) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(entry, paths))


def _compare_sizes(files: Iterable[FileEntry], sizes: Mapping[str, int | None]) -> Iterable[tuple[str, str]]:
    for file in files:
        size = sizes.get(file.path)
        if size is None:
            yield file.path, f"{file.path} is missing"
        elif size < file.size:
            yield file.path, f"{file.path} is truncated: {size} of {file.size} bytes"
        elif size > file.size:
            yield file.path, f"{file.path} is damaged: {size} bytes instead of {file.size}"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _is_safe(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path and "\\" not in path


def _canonical(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _damaged(problems: list[str]) -> InvalidCheckpoint:
    return InvalidCheckpoint([Problem("", problem) for problem in problems])
