"""What is particular to objects as files: no way out of the root, no torn objects, no litter."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from servicekit import errors
from servicekit.objects.directory import INCOMING, translate
from servicekit.objects.file import FileObjectStore
from tests.support.waiting import eventually


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FileObjectStore]:
    opened = FileObjectStore(root)
    await opened.prepare()
    yield opened
    await opened.close()


async def keys(store: FileObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_links_lead_nowhere(store: FileObjectStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(tmp_path / "made")
    for key in ("folder/secret", "file"):
        assert await store.stat(key) is None
        with pytest.raises(errors.NotFound):
            await store.get_bytes(key)
        with pytest.raises(errors.NotFound):
            await store.get_file(key, tmp_path / "copy")
        await store.delete(key)
    for key in ("folder/new", "folder/secret"):
        with pytest.raises(errors.FailedPrecondition, match="link"):
            await store.put_bytes(key, b"x")
    await store.delete_prefix("folder/")
    assert await keys(store) == await keys(store, "folder/") == []
    assert (outside / "secret").read_text() == "secret"
    assert names(outside) == ["secret"]


async def test_a_link_is_replaced_and_not_followed(store: FileObjectStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("untouched")
    (root / "k").symlink_to(tmp_path / "outside")
    await store.put_bytes("k", b"object")
    assert await store.get_bytes("k") == b"object"
    assert (tmp_path / "outside").read_text() == "untouched"


async def test_links_inside_a_removed_folder_are_not_followed(
    store: FileObjectStore, root: Path, tmp_path: Path
) -> None:
    await store.put_bytes("t/1/a", b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    (root / "t" / "1" / "link").symlink_to(tmp_path / "outside")
    await store.delete_prefix("t/1/")
    assert (tmp_path / "outside" / "kept").exists()
    assert names(root) == [INCOMING]


async def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "objects").symlink_to(tmp_path / "disk")
    store = FileObjectStore(tmp_path / "objects")
    await store.put_bytes("a/b", b"x")
    assert (tmp_path / "disk" / "a" / "b").read_bytes() == b"x"
    await store.close()


async def test_files_being_written_are_nobodys_objects(store: FileObjectStore, root: Path) -> None:
    (root / INCOMING / "half").write_bytes(b"x")
    await store.put_bytes(".incoming2", b"an object")
    for key in (f"{INCOMING}/half", INCOMING):
        with pytest.raises(errors.InvalidArgument):
            await store.get_bytes(key)
        with pytest.raises(errors.InvalidArgument):
            await store.put_bytes(key, b"x")
    with pytest.raises(errors.InvalidArgument):
        await store.delete_prefix(f"{INCOMING}/")
    assert await keys(store) == await keys(store, ".inc") == [".incoming2"]
    assert await keys(store, f"{INCOMING}/") == []


async def test_only_plain_files_are_objects(store: FileObjectStore, root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe")
    os.mkfifo(tmp_path / "pipe")
    assert await store.stat("pipe") is None
    with pytest.raises(errors.NotFound):
        await store.get_bytes("pipe")
    with pytest.raises(OSError, match="plain file"):
        await store.put_file("k", tmp_path / "pipe")
    assert await keys(store) == []


async def test_listing_is_in_key_order(store: FileObjectStore) -> None:
    names = ["a", "a!", "b/x", "b-c", "b.c", "b0", "b/x!y/z", "ü/1", "中/1", "z"]
    for name in names:
        await store.put_bytes(name, b"")
    assert await keys(store) == sorted(names)
    assert await keys(store, "b") == sorted(name for name in names if name.startswith("b"))


async def test_foreign_names_are_passed_over(store: FileObjectStore, root: Path) -> None:
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
    (root / "back\\slash").write_bytes(b"x")
    await store.put_bytes("k", b"x")
    assert await keys(store) == ["k"]


async def test_empty_folders_are_removed(store: FileObjectStore, root: Path) -> None:
    await store.put_bytes("a/b/c/d", b"x")
    await store.put_bytes("a/e", b"x")
    await store.delete("a/b/c/d")
    assert names(root / "a") == ["e"]
    await store.delete("a/e")
    assert names(root) == [INCOMING]
    await store.put_bytes("p/q/r", b"x")
    await store.delete_prefix("p/q/")
    await store.put_bytes("p", b"now an object")
    assert names(root / INCOMING) == []


async def test_writers_and_removers_of_one_folder(store: FileObjectStore) -> None:
    async def write_and_delete(number: int) -> None:
        for _ in range(30):
            await store.put_bytes(f"busy/folder/{number}", b"x")
            assert await store.stat(f"busy/folder/{number}")
            await store.delete(f"busy/folder/{number}")

    await asyncio.gather(*(write_and_delete(number) for number in range(8)))
    assert await keys(store) == []


async def test_object_and_folder_of_one_name(store: FileObjectStore) -> None:
    await store.put_bytes("a/b", b"x")
    with pytest.raises(errors.FailedPrecondition):
        await store.put_bytes("a", b"x")
    with pytest.raises(errors.FailedPrecondition):
        await store.put_bytes("a/b/c", b"x")
    with pytest.raises(errors.NotFound):
        await store.get_bytes("a")


WRITER = """
import asyncio, sys
from pathlib import Path
from servicekit.objects.file import FileObjectStore

async def main():
    store = FileObjectStore(Path(sys.argv[1]))
    for number in range(1, 10_000):
        await store.put_bytes("k", bytes([number % 256]) * (4 << 20))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_a_killed_writer_leaves_whole_objects(store: FileObjectStore, root: Path) -> None:
    for lines in (1, 3):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(root), stdout=asyncio.subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(lines):
            assert await writer.stdout.readline()
        await eventually(lambda: names(root / INCOMING), what="a write to be under way")
        writer.send_signal(signal.SIGKILL)
        await writer.communicate()
        data = await store.get_bytes("k")
        assert len(data) == 4 << 20
        assert len(set(data)) == 1
    assert await keys(store) == ["k"]


async def test_what_crashed_writers_left_is_cleared(store: FileObjectStore, root: Path) -> None:
    old, new, folder = (root / INCOMING / name for name in ("old", "new", "folder"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    folder.mkdir()
    (folder / "object").write_bytes(b"x")
    for path in (old, folder):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    await store.prepare()
    assert names(root / INCOMING) == ["new"]


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from servicekit import errors
from servicekit.objects.file import FileObjectStore

async def main():
    store = FileObjectStore(Path(sys.argv[1]))
    await store.put_bytes("k", b"before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    for write in (store.put_bytes("k", bytes(2 << 20)), store.put_file("k", Path(sys.argv[2]))):
        try:
            await write
        except errors.ResourceExhausted as error:
            print(error.reason)
    print((await store.get_bytes("k")).decode(), [info.key async for info in store.list()])

asyncio.run(main())
"""


def test_a_full_disk_loses_nothing(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2 << 20))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(root), str(source)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["OBJECT_STORE_FULL", "OBJECT_STORE_FULL", "before ['k']"]
    assert names(root / INCOMING) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, errors.PermissionDenied),
        (errno.EROFS, errors.PermissionDenied),
        (errno.ENOSPC, errors.ResourceExhausted),
        (errno.EDQUOT, errors.ResourceExhausted),
        (errno.EIO, errors.Unavailable),
        (errno.ENOTDIR, errors.FailedPrecondition),
    ],
)
def test_errors_of_the_file_system(number: int, kind: type[errors.TunesmithError]) -> None:
    error = translate(OSError(number, os.strerror(number)), "tasks/1/log.txt")
    assert type(error) is kind
    assert "tasks/1/log.txt" in str(error)
    assert os.strerror(number) in str(error)


async def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FileObjectStore(tmp_path / "file" / "objects")
    with pytest.raises(errors.FailedPrecondition, match="objects"):
        await store.prepare()
    assert await store.stat("k") is None
    await store.close()


async def test_no_presigned_addresses(store: FileObjectStore) -> None:
    for call in (store.presigned_get, store.presigned_put):
        with pytest.raises(errors.Unimplemented, match="presigned"):
            await call("k", timedelta(minutes=1))


async def test_no_descriptor_is_left_open(store: FileObjectStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100)
    before = len(names(Path("/proc/self/fd")))
    for _ in range(5):
        await store.put_file("a/k", tmp_path / "source")
        await store.get_file("a/k", tmp_path / "copy")
        await store.get_bytes("a/k")
        assert [chunk async for chunk in store.read("a/k", 3, 5)] == [b"x" * 5]
        assert await keys(store, "a/") == ["a/k"]
        with pytest.raises(errors.NotFound):
            await store.get_bytes("none/k")
        await store.delete_prefix("a/")
    assert len(names(Path("/proc/self/fd"))) == before
