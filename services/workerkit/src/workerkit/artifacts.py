"""Directories in the object store: every file, then the manifest; read back, every file against the manifest."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from modelkit.checkpoints import MANIFEST, Manifest, build_manifest, verify, verify_listing
from modelkit.errors import InvalidCheckpoint
from servicekit.errors import NotFound
from servicekit.objects import ObjectStore


class ArtifactDamaged(Exception):
    """What is stored is not what its manifest says; the message names the file."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The attempt that an artifact comes from."""

    task_id: str
    attempt: int
    run: int
    base_model: str

    @property
    def prefix(self) -> str:
        """Prefix of everything the attempt stores."""
        return f"tasks/{self.task_id}/attempts/{self.attempt}"


class Upload:
    """The storing of one directory, over as many tries as it takes. ensure is awaited before each write."""

    def __init__(
        self,
        store: ObjectStore,
        origin: Origin,
        name: str,
        directory: Path,
        *,
        step: int,
        ensure: Callable[[], Awaitable[None]],
    ) -> None:
        self.prefix = f"{origin.prefix}/{name}"
        self._store = store
        self._origin = origin
        self._directory = directory
        self._step = step
        self._ensure = ensure
        self._manifest: Manifest | None = None
        self._stored: set[str] = set()

    async def run(self) -> "Stored":
        """Stores what is not stored yet, the manifest last. Raises what the store raises, and OSError."""
        if self._manifest is None:
            self._manifest = await asyncio.to_thread(self._build)
        manifest = self._manifest
        for file in manifest.files:
            if file.path not in self._stored:
                await self._ensure()
                await self._store.put_file(f"{self.prefix}/{file.path}", self._directory / file.path)
                self._stored.add(file.path)
        content = manifest.to_json()
        await self._ensure()
        await self._store.put_bytes(f"{self.prefix}/{MANIFEST}", content)
        return Stored(self.prefix, manifest.size, content, hashlib.sha256(content).hexdigest())

    def _build(self) -> Manifest:
        if not self._directory.is_dir():
            raise FileNotFoundError(f"{self._directory} has gone")
        return build_manifest(
            self._directory, base_model=self._origin.base_model, attempt=self._origin.attempt, step=self._step
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored directory: size counts the bytes of its files."""

    prefix: str
    size: int
    manifest: bytes
    manifest_sha256: str


async def fetch(
    store: ObjectStore,
    prefix: str,
    directory: Path,
    *,
    manifest_sha256: str = "",
    wanted: Callable[[str], bool] = lambda _: True,
) -> Manifest:
    """Brings a stored directory here, or those of its files whose path is wanted, and verifies every file it brings.

    Raises ArtifactDamaged naming the files that are missing or differ, what the store raises when it cannot be read,
    and OSError.
    """
    prefix = prefix.rstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    manifest = await read_manifest(store, prefix, manifest_sha256)
    await asyncio.to_thread((directory / MANIFEST).write_bytes, manifest.to_json())
    for file in manifest.files:
        if not wanted(file.path):
            continue
        try:
            await store.get_file(f"{prefix}/{file.path}", directory / file.path)
        except NotFound:
            raise ArtifactDamaged(f"{file.path} is missing from the object store") from None
    try:
        return await asyncio.to_thread(verify, directory, wanted)
    except InvalidCheckpoint as error:
        raise ArtifactDamaged(str(error)) from None


async def require_whole(
    store: ObjectStore, prefix: str, sha256: str = "", *, wanted: Callable[[str], bool] = lambda _: True
) -> Manifest:
    """The manifest of a stored directory whose files, or those that are wanted, are all there in their sizes.

    No file is read. Raises what read_manifest raises, ArtifactDamaged also when files are missing or of other sizes.
    """
    folder = f"{prefix.rstrip('/')}/"
    manifest = await read_manifest(store, prefix, sha256)
    sizes = {item.key.removeprefix(folder): item.size async for item in store.list(folder)}
    try:
        verify_listing(manifest, sizes, wanted)
    except InvalidCheckpoint as error:
        raise ArtifactDamaged(str(error)) from None
    return manifest


async def read_manifest(store: ObjectStore, prefix: str, sha256: str = "") -> Manifest:
    """The manifest of a stored directory; sha256 is its hash as it was recorded, empty where none was.

    Raises ArtifactDamaged when it is missing or damaged, and what the store raises.
    """
    try:
        content = await store.get_bytes(f"{prefix.rstrip('/')}/{MANIFEST}")
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactDamaged(f"{MANIFEST} is damaged: it does not have the SHA-256 that was recorded")
        return Manifest.from_json(content)
    except NotFound:
        message = f"{MANIFEST} is missing from the object store; it may have been removed by now"
        raise ArtifactDamaged(message) from None
    except InvalidCheckpoint as error:
        raise ArtifactDamaged(str(error)) from None
