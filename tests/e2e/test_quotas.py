"""Quotas on the whole platform with the real trainer, for both things that may happen when one is spent (M21, M24)."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import nats
import pytest
from nats.js.api import DeliverPolicy

from servicekit import subjects
from servicekit.grpc_client import open_channel
from servicekit.identity import Role, TokenIssuer
from tests.support.platform import Platform, Workload
from tunesmith.client import Client
from tunesmith.task.v1 import quota_service_pb2 as pb
from tunesmith.task.v1 import quota_service_pb2_grpc
from tunesmith.task.v1.event_pb2 import TaskEvent
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_STOPPED


@pytest.fixture
async def quotas(platform: Platform) -> AsyncIterator[Any]:
    platform.wait_healthy()
    async with open_channel(f"127.0.0.1:{platform.ports()['task-service']}", platform.token()) as channel:
        yield quota_service_pb2_grpc.QuotaServiceStub(channel)


@contextmanager
def user(platform: Platform, name: str) -> Iterator[Client]:
    """Somebody whose quota no other test uses."""
    key = (platform.data_dir / "keys" / "signing.pem").read_bytes()
    with Client(platform.url, TokenIssuer(key).issue(name, Role.USER, timedelta(hours=1))) as client:
        yield client


async def heard(platform: Platform, name: str) -> list[str]:
    """What a program that subscribes to the platform's events hears of a user's quota, up to its end."""
    login = json.loads((platform.data_dir / "run" / "subscriber.json").read_text())
    connection = await nats.connect(login["url"], user=login["user"], password=login["password"])
    events = await connection.jetstream().subscribe(
        f"tunesmith.v1.quota.*.{subjects.user(name)}", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
    )
    types: list[str] = []
    while "quota.exhausted" not in types:
        types.append(TaskEvent.FromString((await events.next_msg(timeout=10)).data).type)
    await connection.close()
    return types


async def test_a_task_goes_on_unsaved_and_its_model_is_kept(
    quotas: Any, platform: Platform, workload: Workload
) -> None:
    await quotas.SetQuota(pb.SetQuotaRequest(user="unsaved", monthly_allowance=2))
    with user(platform, "unsaved") as client:
        request = workload.request("unsaved", method=METHOD_LORA, max_steps=12, save_steps=3)
        estimate = client.estimate(request.spec.finetune)
        assert (estimate.quota.user, estimate.quota.remaining, estimate.checkpoints) == ("unsaved", 2, 4)
        assert any("2 left this month and 4 would be saved" in note for note in estimate.notes)
        task = client.tasks.wait(client.tasks.create(request).id)
        assert task.state == STATE_COMPLETED, task.error
        assert [checkpoint.step for checkpoint in client.tasks.checkpoints(task.id)] == [3, 6]
        log = "\n".join(line.text for line in client.tasks.logs(task.id).lines)
    assert log.count("warning: the checkpoint quota is spent") == 1
    assert list((platform.data_dir / "outputs" / task.id).glob("*.safetensors"))
    assert await heard(platform, "unsaved") == ["quota.low", "quota.exhausted"]
    quota = (await quotas.GetQuota(pb.GetQuotaRequest(user="unsaved"))).quota
    assert (quota.used, quota.remaining, quota.low) == (2, 0, True)


async def test_a_task_saves_one_last_checkpoint_and_stops(quotas: Any, platform: Platform, workload: Workload) -> None:
    request = pb.SetQuotaRequest(user="stopped", monthly_allowance=1, exhausted_action=pb.QUOTA_ACTION_STOP)
    await quotas.SetQuota(request)
    with user(platform, "stopped") as client:
        created = client.tasks.create(workload.request("stopped", method=METHOD_LORA, max_steps=10_000, save_steps=3))
        task = client.tasks.wait(created.id)
        assert (task.state, task.error.reason) == (STATE_STOPPED, "QUOTA_EXHAUSTED")
        first, last = client.tasks.checkpoints(task.id)
        assert (first.step, last.step >= 6) == (3, True)
        log = "\n".join(line.text for line in client.tasks.logs(task.id).lines)
        assert f"checkpoint-{last.step} is stored" in log
        await quotas.SetQuota(pb.SetQuotaRequest(user="stopped", monthly_allowance=4))
        client.tasks.resume(task.id)
        client.tasks.stop(task.id)
        assert client.tasks.wait(task.id).state == STATE_STOPPED
    assert (await quotas.GetQuota(pb.GetQuotaRequest(user="stopped"))).quota.used >= 2
