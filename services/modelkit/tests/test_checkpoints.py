"""A checkpoint that is not what its manifest says is named, file by file (faults 4-7, 24)."""

from pathlib import Path

import pytest

from modelkit.checkpoints import MANIFEST, Manifest, sha256_of, verify, verify_listing, write_manifest
from modelkit.errors import InvalidCheckpoint

FILES = {"model.safetensors": b"weights" * 1000, "optimizer.pt": b"moments" * 500, "deep/er/notes.txt": b""}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, base_model="llama", attempt=2, step=500)
    return tmp_path


def test_a_whole_checkpoint_verifies(checkpoint: Path) -> None:
    manifest = verify(checkpoint)
    assert (manifest.base_model, manifest.attempt, manifest.step) == ("llama", 2, 500)
    assert {file.path: file.size for file in manifest.files} == {name: len(content) for name, content in FILES.items()}
    assert manifest.size == sum(map(len, FILES.values()))
    verify_listing(manifest, {file.path: file.size for file in manifest.files})
    assert sha256_of(checkpoint / "model.safetensors") == next(
        file.sha256 for file in manifest.files if file.path == "model.safetensors"
    )


def test_writing_again_gives_the_same_bytes(checkpoint: Path) -> None:
    before = (checkpoint / MANIFEST).read_bytes()
    write_manifest(checkpoint, base_model="llama", attempt=2, step=500)
    assert (checkpoint / MANIFEST).read_bytes() == before
    assert Manifest.from_json(before).to_json() == before


def test_every_bad_file_is_named(checkpoint: Path) -> None:
    flipped = bytearray((checkpoint / "model.safetensors").read_bytes())
    flipped[3500] ^= 1
    (checkpoint / "model.safetensors").write_bytes(flipped)
    (checkpoint / "optimizer.pt").write_bytes(b"short")
    (checkpoint / "deep" / "er" / "notes.txt").unlink()
    with pytest.raises(InvalidCheckpoint) as caught:
        verify(checkpoint)
    assert [problem.message for problem in caught.value.problems] == [
        "deep/er/notes.txt is missing",
        "model.safetensors is damaged: its content does not have the SHA-256 it was saved with",
        "optimizer.pt is truncated: 5 of 3500 bytes",
    ]


def test_a_checkpoint_without_manifest_was_never_finished(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()
    with pytest.raises(InvalidCheckpoint, match="never finished"):
        verify(checkpoint)


def test_any_flipped_bit_of_a_manifest_is_seen(checkpoint: Path) -> None:
    raw = (checkpoint / MANIFEST).read_bytes()
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        with pytest.raises(InvalidCheckpoint):
            Manifest.from_json(bytes(damaged))


def test_a_listing_shows_missing_and_truncated_files(checkpoint: Path) -> None:
    manifest = verify(checkpoint)
    with pytest.raises(InvalidCheckpoint) as caught:
        verify_listing(manifest, {"model.safetensors": 7, "optimizer.pt": 9999})
    assert [problem.message.split()[0] for problem in caught.value.problems] == [
        "deep/er/notes.txt",
        "model.safetensors",
        "optimizer.pt",
    ]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b"])
def test_a_manifest_names_nothing_outside_its_directory(path: str) -> None:
    from modelkit.checkpoints import FileEntry

    raw = Manifest((FileEntry(path, 1, "0" * 64),), "m", 1, 1).to_json()
    with pytest.raises(InvalidCheckpoint, match="not beneath it"):
        Manifest.from_json(raw)
