"""Room on disk: sizes of what is written against real files, and what each file system must take."""

from pathlib import Path

from trainer_service.estimates import disk
from trainer_service.estimates.disk import Files, Places, Room, rooms, tightest

SIZES = Files(checkpoint=100, output=30)


def total(found: list[Room]) -> int:
    (room,) = found
    return room.needed


def test_everything_on_one_file_system(tmp_path: Path) -> None:
    """Two checkpoints and the model in the working directory, and what is stored; the output directory has links."""
    places = Places(tmp_path / "work", tmp_path / "out", tmp_path / "objects")
    assert total(rooms(SIZES, saved=10, kept=10, places=places)) == 2 * 100 + 30 + 10 * 100 + 30
    assert total(rooms(SIZES, saved=10, kept=3, places=places)) == 2 * 100 + 30 + 4 * 100 + 30
    assert total(rooms(SIZES, saved=1, kept=1, places=places)) == 100 + 30 + 100 + 30
    assert total(rooms(SIZES, saved=0, kept=0, places=places)) == 30 + 30


def test_an_object_store_elsewhere_takes_no_room_here(tmp_path: Path) -> None:
    places = Places(tmp_path / "work", tmp_path / "out")
    assert total(rooms(SIZES, saved=10, kept=10, places=places)) == 2 * 100 + 30


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    places = Places(tmp_path / "work", Path("/proc"), tmp_path / "objects")
    here, there = rooms(SIZES, saved=10, kept=3, places=places)
    assert (here.needed, here.stored, there.needed, there.stored) == (2 * 100 + 30 + 4 * 100 + 30, 4, 30, 0)
    assert here.path == tmp_path / "objects"


def test_the_tightest_is_the_one_that_lacks_most() -> None:
    fine, stores = Room(Path("a"), 5, 10, 0), Room(Path("b"), 5, 10, 3)
    lacks, lacks_more = Room(Path("c"), 12, 10, 0), Room(Path("d"), 30, 10, 0)
    assert tightest([fine, stores]) == stores
    assert tightest([fine, stores, lacks, lacks_more]) == lacks_more


def test_places_that_do_not_exist_yet(tmp_path: Path) -> None:
    places = Places(tmp_path / "a" / "b", tmp_path / "c", tmp_path / "d" / "e")
    assert rooms(SIZES, saved=1, kept=1, places=places)[0].free > 0
    assert disk.tokenizer_bytes(tmp_path) == 0
