"""What evaluations, exports and trainings start from stays until they have ended."""

import asyncio

import pytest

from servicekit.errors import FailedPrecondition, InvalidArgument
from servicekit.identity import Principal, Role
from services.task_service.tests.harness import Client, Service, crashed, language_model_spec
from services.task_service.tests.source_tasks import continuation, evaluation, export, problems, training
from task_service.database.models import DatasetRow
from task_service.datasets.queries import Datasets
from tunesmith.task.v1 import spec_pb2, task_pb2

PENDING = task_pb2.STATE_PENDING


async def test_a_source_is_not_deleted_from_under_a_task(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    first, second = [await alice.create(spec=export(source.id)) for _ in range(2)]
    with pytest.raises(FailedPrecondition) as caught:
        await alice.delete(source.id)
    assert caught.value.reason == "TASK_IN_USE"
    assert caught.value.metadata["used_by"] == f"{first.id},{second.id}"
    await alice.stop(first.id)
    attempt = await service.worker().claim(second.id)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await alice.delete(source.id)
    with pytest.raises(FailedPrecondition) as caught:
        await alice.resume(first.id)
    assert caught.value.reason == "SOURCE_GONE"


async def test_a_source_is_deleted_by_force(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10)
    runs = await alice.create(spec=export(source.id, 10))
    waits = await alice.create(spec=export(source.id))
    await service.worker().claim(runs.id)
    with pytest.raises(FailedPrecondition):
        await alice.delete(source.id)
    await alice.delete(source.id, force=True)
    assert (await alice.get(waits.id)).error.reason == "DEPENDENCY_FAILED"
    again = await service.worker().claim(runs.id)
    assert [item.step for item in again.claim.source.checkpoints] == [10], "what it reads is still there"


async def test_the_task_of_a_checkpoint_that_a_training_goes_on_from_is_deleted_by_force(
    service: Service, alice: Client
) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    task = await alice.create(spec=continuation(source.id, 10))
    with pytest.raises(FailedPrecondition):
        await alice.delete(source.id)
    await alice.delete(source.id, force=True)
    claim = (await service.worker().claim(task.id)).claim
    assert [(item.task_id, item.step) for item in claim.resume_from] == [(source.id, 10)], "it is still there"
    assert claim.resume_exact
    with pytest.raises(InvalidArgument, match="no stored checkpoint"):
        await alice.create(spec=continuation(source.id, 10))


@pytest.mark.parametrize("saves", [False, True])
async def test_a_training_resumes_without_the_checkpoint_it_named_only_from_its_own(
    service: Service, alice: Client, saves: bool
) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    task, _ = await training(service, alice, *([20] if saves else []), end="failed", spec=continuation(source.id, 10))
    await alice.delete(source.id)
    if saves:
        assert (await alice.resume(task.id)).state == PENDING
        return
    with pytest.raises(FailedPrecondition, match="no stored checkpoint") as caught:
        await alice.resume(task.id)
    assert caught.value.reason == "SOURCE_GONE"


async def test_checkpoints_in_use_are_kept_beyond_the_limit(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10, spec=language_model_spec(save_total_limit=1))
    task = await alice.create(spec=export(source.id, 10))
    for step in (20, 30):
        await attempt.say(checkpoint_saved=attempt.checkpoint(step))
        await service.record_facts()
    assert [item.step for item in await alice.checkpoints(source.id)] == [10, 30]
    running = await service.worker().claim(task.id)
    await running.say(completed=running.completed())
    await service.record_facts()
    await attempt.say(checkpoint_saved=attempt.checkpoint(40))
    await service.record_facts()
    assert [item.step for item in await alice.checkpoints(source.id)] == [40]


async def test_a_repeated_checkpoint_leaves_the_one_in_use_alone(service: Service, alice: Client) -> None:
    source, attempt = await training(service, alice, 10)
    await alice.create(spec=export(source.id, 10))
    await attempt.say(failed=crashed())
    await service.record_facts()
    again = await service.worker().claim(source.id, 2)
    await again.say(checkpoint_saved=again.checkpoint(10))
    await service.record_facts()
    assert [item.attempt for item in await alice.checkpoints(source.id)] == [1, 2]
    assert [item.attempt for item in (await alice.source(source.id)).checkpoints] == [2], "the newest of a step counts"


async def add_dataset(service: Service, dataset_id: str) -> None:
    async with service.core.database.sessions.begin() as session:
        values = {"name": "n", "version": 1, "type": "llm", "file_name": "f", "sha256": "", "object_key": ""}
        session.add(DatasetRow(id=dataset_id, owner="alice", format="text", **values))


async def delete_dataset(service: Service, dataset_id: str) -> None:
    principal = Principal("alice", Role.USER)
    await Datasets(service.core.database).delete(principal, dataset_id)


async def test_the_data_of_the_source_stays_while_it_is_evaluated_on(service: Service, alice: Client) -> None:
    data = "d" * 26
    await add_dataset(service, data)
    spec = language_model_spec()
    spec.finetune.dataset.dataset_id = data
    source, _ = await training(service, alice, 10, end="completed", spec=spec)
    task = await alice.create(spec=evaluation(source.id))
    other = await alice.create(spec=evaluation(source.id, dataset=spec_pb2.DatasetSource(path="samples.jsonl")))
    with pytest.raises(FailedPrecondition, match=task.id):
        await delete_dataset(service, data)
    await alice.stop(task.id)
    await delete_dataset(service, data)
    assert (await alice.get(other.id)).state == PENDING
    assert await problems(alice, evaluation(source.id)) == {"spec.evaluate.dataset": f"there is no dataset {data}"}


@pytest.mark.parametrize("round_", range(4))
async def test_deleting_a_source_races_with_its_use(service: Service, alice: Client, round_: int) -> None:
    """Either the source is gone and nothing starts from it, or it stays."""
    source, _ = await training(service, alice, 10, end="completed")
    deleted, *made = await asyncio.gather(
        alice.delete(source.id), *(alice.create(spec=export(source.id)) for _ in range(4)), return_exceptions=True
    )
    accepted = [item for item in made if isinstance(item, task_pb2.Task)]
    assert all(isinstance(item, task_pb2.Task | InvalidArgument) for item in made), made
    if deleted is None:
        assert accepted == []
    else:
        assert isinstance(deleted, FailedPrecondition)
        assert accepted


@pytest.mark.parametrize("round_", range(4))
async def test_removing_a_checkpoint_races_with_its_use(service: Service, alice: Client, round_: int) -> None:
    source, attempt = await training(service, alice, 10, spec=language_model_spec(save_total_limit=1))
    await attempt.say(checkpoint_saved=attempt.checkpoint(20))
    made, _ = await asyncio.gather(
        alice.create(spec=export(source.id, 10)), service.record_facts(), return_exceptions=True
    )
    stored = [item.step for item in await alice.checkpoints(source.id)]
    if isinstance(made, task_pb2.Task):
        assert stored == [10, 20]
    else:
        assert isinstance(made, InvalidArgument)
        assert stored == [20]
