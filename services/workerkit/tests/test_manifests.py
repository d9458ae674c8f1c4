"""A stored directory is what its manifest says, or it is damaged."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelkit.checkpoints import Manifest
from servicekit.objects import ObjectStore
from workerkit.artifacts import ArtifactDamaged, Origin, Stored, Upload, fetch, read_manifest


async def _nothing() -> None:
    return None


@pytest.fixture
async def stored(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Stored]:
    await store.prepare()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    (folder / "notes").write_bytes(b"notes")
    yield await Upload(store, Origin("t", 1, 1, "base"), "checkpoint-5", folder, step=5, ensure=_nothing).run()
    await store.close()


async def test_a_manifest_is_read_with_and_without_its_hash(store: ObjectStore, stored: Stored) -> None:
    for prefix, sha256 in ((stored.prefix, stored.manifest_sha256), (f"{stored.prefix}/", "")):
        manifest = await read_manifest(store, prefix, sha256)
        assert ([file.path for file in manifest.files], manifest.step) == (["notes", "weights"], 5)


async def test_a_manifest_that_is_missing_or_damaged_is_told(store: ObjectStore, stored: Stored) -> None:
    with pytest.raises(ArtifactDamaged, match="SHA-256 that was recorded"):
        await read_manifest(store, stored.prefix, "0" * 64)
    await store.put_bytes(f"{stored.prefix}/manifest.json", stored.manifest.replace(b"weights", b"weighty"))
    with pytest.raises(ArtifactDamaged, match=r"manifest\.json is damaged"):
        await read_manifest(store, stored.prefix)
    await store.delete(f"{stored.prefix}/manifest.json")
    with pytest.raises(ArtifactDamaged, match=r"manifest\.json is missing .* may have been removed"):
        await read_manifest(store, stored.prefix)


async def test_wanted_files_come_with_their_manifest(store: ObjectStore, stored: Stored, tmp_path: Path) -> None:
    target = tmp_path / "fetched"
    await fetch(store, stored.prefix, target, wanted=lambda path: path == "weights")
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "weights"]
    assert Manifest.from_json((target / "manifest.json").read_bytes()).to_json() == stored.manifest
    await store.put_bytes(f"{stored.prefix}/weights", b"other!!")
    with pytest.raises(ArtifactDamaged, match="weights is damaged"):
        await fetch(store, stored.prefix, target)
    await store.delete(f"{stored.prefix}/weights")
    with pytest.raises(ArtifactDamaged, match="weights is missing"):
        await fetch(store, stored.prefix, target)
