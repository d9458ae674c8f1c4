"""A program that subscribes to the platform's events on NATS, with the login that `tunesmith up` leaves for it."""

import json
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy

from tests.support.platform import Platform, Workload
from tunesmith.client import Client
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED


@pytest.fixture
async def subscriber(platform: Platform) -> AsyncIterator[Nats]:
    login = json.loads((platform.data_dir / "run" / "subscriber.json").read_text())

    async def ignore(_: Exception) -> None:
        """Refusals are seen by whoever waits for an answer."""

    connection = await nats.connect(login["url"], user=login["user"], password=login["password"], error_cb=ignore)
    yield connection
    await connection.close()


async def test_events_of_a_task_in_order(
    platform: Platform, client: Client, workload: Workload, subscriber: Nats
) -> None:
    task_id = client.tasks.create(workload.request("subscribed", method=METHOD_LORA, max_steps=2)).id
    assert client.tasks.wait(task_id).state == STATE_COMPLETED
    events = await subscriber.jetstream().subscribe(
        f"tunesmith.v1.*.*.{task_id}", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
    )
    types: list[str] = []
    while "task.completed" not in types:
        message = await events.next_msg(timeout=10)
        event = TaskEvent.FromString(message.data)
        headers = message.headers or {}
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-id"] == headers["Nats-Msg-Id"] == event.id
        assert headers["ce-type"].endswith(event.type)
        assert message.subject == f"tunesmith.v1.{event.type}.{task_id}"
        types.append(event.type)
    assert types[:2] == ["task.created", "task.started"]
    assert types.count("checkpoint.saved") == 1
    assert types.count("metrics.logged") >= 1


@pytest.mark.parametrize("subject", ["fact.any", "work.finetune.default.any", "tunesmith.v1.task.completed.any"])
async def test_a_subscriber_may_only_listen(subscriber: Nats, subject: str) -> None:
    with pytest.raises((NatsError, TimeoutError)):
        await subscriber.jetstream().publish(subject, b"forged", timeout=1)
