"""Processes of models that do not come up."""

from pathlib import Path

import pytest

from eval_service.generation import process
from eval_service.generation.process import ModelProcess
from servicekit.errors import Unavailable
from tests.support.waiting import eventually
from workerkit.fork_launcher import running_launcher
from workerkit.fork_server import children_of


async def test_one_that_never_connects_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(process, "ENTRY", "silent_process:wait")
    monkeypatch.setattr(process, "CONNECT_SECONDS", 0.2)
    folder = tmp_path / "model"
    async with running_launcher(preload="json", entry=process.ENTRY) as launcher:
        await launcher.wait_warm()
        with pytest.raises(Unavailable, match="did not answer"):
            await ModelProcess.start(launcher, folder, {})
        assert launcher.pid is not None
        server = launcher.pid
        await eventually(lambda: not children_of(server))
    assert not folder.exists()
