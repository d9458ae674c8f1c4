"""What a task reads stays in the caches, wherever it came from."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles
from modelkit.paths import AllowedRoots
from workerkit.holding import holding


@dataclass
class Checked:
    """As checks of services answer."""

    model_dir: Path | None = None
    dataset: DatasetFiles | None = None


def entry(cache: DataCache, name: str) -> Path:
    """An entry that was used long ago."""
    folder = cache.get(name, lambda folder: (folder / "rows.jsonl").touch())
    os.utime(folder, (0, 0))
    return folder


def test_data_and_model_are_held_and_let_go(tmp_path: Path) -> None:
    cache, conversions = (DataCache(tmp_path / name) for name in ("data", "models"))
    full = [DataCache(one.root, limit_bytes=-1) for one in (cache, conversions)]
    models = BaseModels(AllowedRoots([tmp_path]), conversions=conversions)
    train, other, model = entry(cache, "rows-1"), entry(cache, "rows-2"), entry(conversions, "model-1")
    files = DatasetFiles(tmp_path / "own.jsonl", validation=train / "rows.jsonl")
    with holding(Checked(model, files), cache, models), holding(Checked(model), cache, models):
        for one in full:
            one.trim()
        assert (train.exists(), other.exists(), model.exists()) == (True, False, True)
    for one in full:
        one.trim()
    assert (train.exists(), model.exists()) == (False, False)


def test_what_has_gone_is_told(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "data")
    models = BaseModels(AllowedRoots([tmp_path]))
    train = entry(cache, "rows-1")
    checked = Checked(tmp_path / "model", DatasetFiles(train / "rows.jsonl"))
    with holding(checked, cache, models):
        pass
    shutil.rmtree(train)
    with pytest.raises(FileNotFoundError), holding(checked, cache, models):
        pass
