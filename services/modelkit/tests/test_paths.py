"""Users' paths never leave the allowed roots (faults 44)."""

from pathlib import Path

import pytest

from modelkit.errors import PathNotAllowed
from modelkit.paths import AllowedRoots


def test_paths_beneath_a_root_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    roots = AllowedRoots([tmp_path / "none", tmp_path])
    assert roots.resolve(str(tmp_path / "data"), field="f") == tmp_path / "data"
    assert roots.resolve("data", field="f") == tmp_path / "data"
    assert roots.resolve(str(tmp_path / "new" / "er"), field="f", must_exist=False) == tmp_path / "new" / "er"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{root}/../other",
        "../other",
        "{root}/link/file",
        "",
        "  ",
        "a\0b",
        "{root}-other",
        "{root}/" + "x" * 5000,
    ],
)
def test_everything_else_is_refused_and_names_the_field(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "root-other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    with pytest.raises(PathNotAllowed) as caught:
        AllowedRoots([root]).resolve(path.format(root=root), field="output_dir")
    assert caught.value.problems[0].field == "output_dir"


def test_outside_paths_say_what_is_allowed_and_not_whether_they_exist(tmp_path: Path) -> None:
    roots = AllowedRoots([tmp_path])
    for path in ("/etc/passwd", "/etc/no-such-file"):
        with pytest.raises(PathNotAllowed, match=f"outside the allowed directories \\({tmp_path}\\)"):
            roots.resolve(path, field="f")


def test_a_missing_path_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PathNotAllowed) as caught:
        AllowedRoots([tmp_path]).resolve(str(tmp_path / "gone"), field="f")
    assert caught.value.reason == "PATH_NOT_FOUND"


@pytest.mark.parametrize("name", ["objects", "objects/tasks/model", "link"])
def test_what_is_private_lies_outside_although_a_root_contains_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "objects" / "tasks" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "objects")
    (tmp_path / "models").mkdir()
    roots = AllowedRoots([tmp_path], private=[tmp_path / "objects"])
    with pytest.raises(PathNotAllowed, match="the platform's own") as caught:
        roots.resolve(str(tmp_path / name), field="base_model")
    assert "outside" not in caught.value.problems[0].message
    assert roots.resolve(str(tmp_path / "models"), field="base_model") == tmp_path / "models"


def test_the_platforms_own_copies_may_be_read_and_not_named(tmp_path: Path) -> None:
    """The cache of data lies in the workers' scratch space, which is private."""
    cached = tmp_path / "work" / "cache" / "rows.jsonl"
    cached.parent.mkdir(parents=True)
    cached.touch()
    roots = AllowedRoots([tmp_path], private=[tmp_path / "work"], own=[tmp_path / "work" / "cache"])
    assert roots.contains(cached)
    assert not roots.contains(tmp_path / "work" / "other")
    with pytest.raises(PathNotAllowed):
        roots.resolve(str(cached), field="dataset.path")
