"""The worker's side of the fork server: keeps one alive and starts children through it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from workerkit.fork_server_process import ForkedChild, ForkServerProcess, Warmth
from workerkit.launcher import LaunchError

logger = logging.getLogger(__name__)

RESTART_SECONDS = 0.2
RESTART_CEILING_SECONDS = 10.0
# Imports take seconds, on a busy machine a minute; one that takes longer hangs.
WARM_UP_SECONDS = 300.0


class ForkLauncher:
    """Starts children through a fork server, which it restarts when it dies.

    With warm_seconds 0 the fork server is there from the start, so that children start at once. Else it is started for
    the first child, and ended when none has run for so long, so that an idle service takes little memory.
    """

    def __init__(self, *, preload: str, entry: str, warm_seconds: float = 0.0) -> None:
        self._preload = preload
        self._entry = entry
        self._warm_seconds = warm_seconds
        self._server: ForkServerProcess | None = None
        self._warm, self._able = Warmth(), Warmth()
        self._able.set(self._on_demand)
        self._waiting: set[asyncio.Future[None]] = set()
        self._wanted = asyncio.Event()

    @property
    def _on_demand(self) -> bool:
        return self._warm_seconds > 0

    @property
    def warm(self) -> bool:
        """Whether a child can be started without waiting."""
        return bool(self._warm)

    @property
    def pid(self) -> int | None:
        """Process id of the fork server, None while there is none."""
        return self._server.process.pid if self._server else None

    async def wait_warm(self) -> None:
        """Waits until a child can be started without waiting."""
        await self._warm.wait(True)

    async def wait_able(self) -> None:
        """Waits until children can be started, be it after the fork server has been."""
        await self._able.wait(True)

    async def wait_unable(self) -> None:
        """Waits until no child can be started, because the fork server died."""
        await self._able.wait(False)

    async def run(self) -> None:
        """Keeps a fork server alive while one is wanted, until cancelled; then ends it with its children."""
        delay = RESTART_SECONDS
        while True:
            if self._on_demand:
                await self._wanted.wait()
            try:
                async with self._serving() as server:
                    delay = RESTART_SECONDS
                    self._tell(None)
                    if await self._idle(server):
                        continue
                logger.warning("the fork server ended with status %s; starting another", server.process.returncode)
            except LaunchError as error:
                logger.error("%s", error)
                self._tell(error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RESTART_CEILING_SECONDS)

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[ForkServerProcess]:
        """A fork server that is warm; it is ended with the context. Raises LaunchError when it does not come up."""
        try:
            self._server = server = ForkServerProcess.spawn(self._preload, self._entry, self._warm)
        except OSError as error:
            raise LaunchError(f"no fork server can be started: {error}") from error
        try:
            await asyncio.wait((server.ready,), timeout=WARM_UP_SECONDS)
            if not server.ready.done():
                raise LaunchError(f"the fork server was not ready within {WARM_UP_SECONDS:g} s")
            server.ready.result()
            logger.info("fork server %d is warm", server.process.pid)
            yield server
        finally:
            await server.stop()
            self._server = None

    def _tell(self, error: LaunchError | None) -> None:
        """Tells those who wait for a fork server; one that is kept warm is waited for over failures."""
        self._able.set(error is None)
        for waiting in self._waiting:
            if waiting.done():
                continue
            if error is None:
                waiting.set_result(None)
            elif self._on_demand:
                waiting.set_exception(error)

    async def _idle(self, server: ForkServerProcess) -> bool:
        """Waits until a fork server is not wanted any more; False when it died before."""
        while not server.gone.done():
            left = server.used + self._warm_seconds - time.monotonic()
            if self._on_demand and left <= 0 and not server.busy and not self._waiting:
                self._warm.set(False)
                self._wanted.clear()
                logger.info("fork server %d is not needed for now", server.process.pid)
                return True
            pause = max(left, self._warm_seconds / 10) if self._on_demand else None
            await asyncio.wait((server.gone,), timeout=pause)
        self._able.set(False)
        return False

    def warm_up(self) -> None:
        """Has a fork server started, or kept, for a child that is about to come."""
        self._wanted.set()
        if self._server is not None:
            self._server.used = time.monotonic()

    async def start(self, job_dir: Path, env: Mapping[str, str], *, entry: str | None = None) -> ForkedChild:
        """Starts a child once the fork server is warm; entry (`module:function`) replaces the usual one.

        Raises LaunchError when that fails, or when a fork server that is started for it does not come up.
        """
        self.warm_up()
        if not self.warm:
            await self._warmed_up()
        if self._server is None:
            raise LaunchError("there is no fork server")
        return await self._server.start(job_dir, env, entry)

    async def _warmed_up(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


@contextlib.asynccontextmanager
async def running_launcher(*, preload: str, entry: str, warm_seconds: float = 0.0) -> AsyncIterator[ForkLauncher]:
    """A launcher whose fork server lives no longer than the context."""
    launcher = ForkLauncher(preload=preload, entry=entry, warm_seconds=warm_seconds)
    keeper = asyncio.create_task(launcher.run())
    try:
        yield launcher
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
