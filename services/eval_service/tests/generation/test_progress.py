"""How far loading is, is told in order."""

import asyncio

from eval_service.generation.progress import Progress, told


async def test_a_phase_that_begins_while_another_is_told_is_told_from_its_start() -> None:
    loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    progress = Progress()
    progress.enter("starting process")
    heard = []
    async for phase, percent in told(loading, progress):
        heard.append((phase, percent))
        if phase == "starting process":
            progress.enter("loading model")
            progress.percent = 99.0
            loading.set_result(None)
    assert heard == [("starting process", 0.0), ("loading model", 0.0), ("loading model", 99)]
