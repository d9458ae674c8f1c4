"""What a training reads stays in the caches until it has ended, however long that takes and whatever others add."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkit.datasets import DataCache
from services.trainer_service.tests.bench import Bench, MakeSpec, open_gate
from services.workerkit.tests.desk import Desk
from tests.support.waiting import eventually
from tunesmith.task.v1 import spec_pb2


@pytest.fixture
def spec(make_spec: MakeSpec, tmp_path: Path) -> spec_pb2.FinetuneSpec:
    """Its validation rows must be converted first, and so lie in the cache."""
    (tmp_path / "data" / "rows.csv").write_text("instruction,output\nq,a\n")
    spec = make_spec({"steps": 3, "gates": {"2": "go"}})
    spec.dataset.validation_path = str(tmp_path / "data" / "rows.csv")
    return spec


async def test_data_stays_until_the_training_has_ended(bench: Bench, desk: Desk, spec: spec_pb2.FinetuneSpec) -> None:
    """A cache that is full takes what was not looked up for ten minutes."""
    task_id = await desk.submit(spec)
    full = DataCache(bench.root / "data-cache", limit_bytes=0)
    async with bench.worker():
        await desk.trained_to(task_id, 2)
        (entry,) = full.root.glob("rows-*")
        os.utime(entry, (0, 0))
        full.trim()
        assert (entry / "rows.jsonl").is_file()
        open_gate(spec, "go")
        await desk.facts_until(task_id, "completed")

        def is_let_go() -> bool:
            full.trim()
            return not entry.exists()

        await eventually(is_let_go)


async def test_data_that_left_before_it_was_held_is_made_again(
    bench: Bench, desk: Desk, spec: spec_pb2.FinetuneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, held = DataCache.holding, []

    @contextlib.contextmanager
    def late(self: DataCache, *paths: Path) -> Iterator[None]:
        held.append([path for path in paths if path.exists()])
        if len(held) == 1:
            for entry in self.root.glob("rows-*"):
                shutil.rmtree(entry)
        with holding(self, *paths):
            yield

    monkeypatch.setattr(DataCache, "holding", late)
    open_gate(spec, "go")
    task_id = await desk.submit(spec)
    async with bench.worker():
        await desk.facts_until(task_id, "completed")
    assert len(held) == 2
    assert len(held[1]) == len(held[0]) == 2
