"""The spool against a real nats-server: order and completeness over kills, bounded memory, a full disk."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from servicekit import subjects
from servicekit.bus import EventBus, Outgoing
from servicekit.errors import Unavailable
from tests.support.nats import NatsServer
from tests.support.waiting import eventually
from workerkit.spool import Entry, Overflow, Spool

SUBJECT = subjects.fact("t1")


async def open_gate() -> None:
    """Lets everything pass."""


@asynccontextmanager
async def pumping(spool: Spool) -> AsyncIterator[None]:
    task = asyncio.create_task(spool.pump())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        spool.discard()


def message(number: int, size: int = 0) -> Outgoing:
    return Outgoing(SUBJECT, f"{number}".encode().ljust(size, b"."), f"id.{number}")


async def stored(bus: EventBus) -> list[int]:
    first, last = await bus.sequences(subjects.FACTS)
    found = [await bus.message_at(subjects.FACTS, sequence) for sequence in range(first, last + 1)]
    return [int(item[1].rstrip(b".")) for item in found if item]


class Recorder:
    """Takes messages, or refuses them while it is down."""

    def __init__(self) -> None:
        self.down = False
        self.batches: list[list[bytes]] = []

    async def publish_all(self, messages: Sequence[Outgoing]) -> None:
        if self.down:
            raise Unavailable("down")
        self.batches.append([item.data for item in messages])


async def test_nothing_is_lost_or_reordered_while_the_broker_is_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    bus = await EventBus.connect(nats_server.url, name="test")
    await bus.ensure_streams()
    spool = Spool(bus, tmp_path / "spool", open_gate, memory_bytes=2_000)
    async with pumping(spool):
        for number in range(300):
            spool.put(message(number, 100))
        nats_server.kill()
        for number in range(300, 600):
            spool.put(message(number, 100), alone=number == 450)
            await asyncio.sleep(0)
        assert (tmp_path / "spool").stat().st_size > 0
        nats_server.restart()
        await asyncio.wait_for(spool.drained(), 40)
        assert (tmp_path / "spool").stat().st_size == 0
    assert await stored(bus) == list(range(600))
    assert not (tmp_path / "spool").exists()
    await bus.close()


async def test_overflow_goes_to_disk_and_comes_back_in_order(tmp_path: Path) -> None:
    publisher = Recorder()
    publisher.down = True
    spool = Spool(publisher, tmp_path / "deep" / "spool", open_gate, memory_bytes=50)
    for number in range(10):
        spool.put(message(number, 10))
    assert len(spool._memory) == 5
    async with pumping(spool):
        publisher.down = False
        for number in range(10, 14):
            spool.put(message(number, 10))
        await asyncio.wait_for(spool.drained(), 5)
    assert [int(data.rstrip(b".")) for batch in publisher.batches for data in batch] == list(range(14))


async def test_a_last_fact_goes_alone_and_behind_everything(tmp_path: Path) -> None:
    publisher = Recorder()
    spool = Spool(publisher, tmp_path / "spool", open_gate)
    for number in range(5):
        spool.put(message(number), alone=number == 3)
    async with pumping(spool):
        await asyncio.wait_for(spool.drained(), 5)
    assert publisher.batches == [[b"0", b"1", b"2"], [b"3"], [b"4"]]


async def test_when_no_disk_takes_it_the_end_is_still_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a directory")
    publisher = Recorder()
    spool = Spool(publisher, tmp_path / "file" / "spool", open_gate, memory_bytes=2)
    for number in range(9):
        spool.put(message(number), alone=number == 8)
    async with pumping(spool):
        await asyncio.wait_for(spool.drained(), 5)
    assert publisher.batches == [[b"0", b"1"], [b"8"]]
    assert "dropped" in caplog.text


async def test_nothing_is_sent_before_the_gate_opens(tmp_path: Path) -> None:
    publisher, opened = Recorder(), asyncio.Event()

    async def gate() -> None:
        await opened.wait()

    spool = Spool(publisher, tmp_path / "spool", gate)
    spool.put(message(1))
    async with pumping(spool):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(spool.drained(), 0.05)
        assert not publisher.batches
        opened.set()
        await asyncio.wait_for(spool.drained(), 5)
    assert publisher.batches == [[b"1"]]


async def test_a_closed_gate_ends_the_pump(tmp_path: Path) -> None:
    async def gate() -> None:
        raise PermissionError("not ours any more")

    publisher = Recorder()
    spool = Spool(publisher, tmp_path / "spool", gate)
    spool.put(message(1))
    with pytest.raises(PermissionError):
        await spool.pump()
    assert not publisher.batches


async def test_puts_never_wait_while_the_broker_is_away(nats_server: NatsServer, tmp_path: Path) -> None:
    bus = await EventBus.connect(nats_server.url, name="test")
    await bus.ensure_streams()
    nats_server.kill()
    await eventually(lambda: not bus.connected)
    spool = Spool(bus, tmp_path / "spool", open_gate, memory_bytes=1 << 20)
    loop = asyncio.get_running_loop()
    async with pumping(spool):
        began = loop.time()
        for number in range(20_000):
            spool.put(message(number, 200))
        assert loop.time() - began < 5
        assert spool._held <= (1 << 20) + 200
    await bus.close()


def test_overflow_keeps_any_bytes(tmp_path: Path) -> None:
    overflow = Overflow(tmp_path / "spool")
    entries = [Entry(Outgoing("s", bytes(range(256)) * n, f"i{n}"), alone=n % 2 == 0) for n in range(5)]
    for entry in entries:
        overflow.append(entry)
    assert overflow
    taken = []
    while overflow:
        taken += overflow.take(300)
    assert taken == entries
    overflow.append(entries[4])
    assert overflow.take(1) == entries[4:]
    overflow.remove()
