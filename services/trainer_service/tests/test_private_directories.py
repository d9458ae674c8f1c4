"""What users may name, as the settings say (faults 44 and 53)."""

from pathlib import Path

import pytest

from modelkit.errors import PathNotAllowed
from modelkit.paths import AllowedRoots
from trainer_service.settings import TrainerSettings


@pytest.mark.parametrize("place", ["work/data-cache", "objects/datasets", "keys"])
def test_what_belongs_to_all_users_is_nobodys_to_name(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    settings = TrainerSettings(
        allowed_roots=(tmp_path,),
        private_paths=(tmp_path / "keys",),
        output_root=tmp_path / "outputs",
        work_dir=tmp_path / "work",
        object_store_url=f"file://{tmp_path}/objects",
    )
    roots = AllowedRoots(settings.roots(), private=settings.private())
    with pytest.raises(PathNotAllowed):
        roots.resolve(str(tmp_path / place), field="dataset.path")
    assert roots.resolve(str(tmp_path / "mine"), field="dataset.path", must_exist=False) == tmp_path / "mine"
