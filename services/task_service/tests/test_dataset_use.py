"""Uploaded datasets that tasks train on: checked by a trainer, and kept while they are in use."""

from typing import Any

import pytest

from servicekit.errors import (
    FailedPrecondition,
    InvalidArgument,
    Problem,
)
from servicekit.grpc_client import open_channel
from services.task_service.tests.harness import Client, Service
from services.task_service.tests.uploads import archive, delete, nothing_is_left, sqlite_only, training_on, upload
from task_service.datasets.checking import Checked, TrainerDatasetChecker
from tunesmith.task.v1 import task_pb2


async def test_problems_of_rows_are_kept_and_keep_tasks_away(service: Service, alice: Client) -> None:
    service.dataset_checker.found = Checked(3, "messages", ["rows.jsonl: no output (2 lines: 4, 9); add one"])
    dataset = await upload(alice)
    assert list(dataset.problems) == ["rows.jsonl: no output (2 lines: 4, 9); add one"]
    with pytest.raises(InvalidArgument, match="4, 9") as caught:
        await alice.create(spec=training_on(dataset.id))
    assert [problem.field for problem in caught.value.problems] == ["spec.finetune.dataset.dataset_id"]


async def test_a_file_that_the_trainer_cannot_read_is_not_kept(service: Service, alice: Client) -> None:
    problem = Problem("dataset.dataset_id", "the archive is damaged")
    service.dataset_checker.error = InvalidArgument(problems=[problem], reason="DATASET_INVALID")
    with pytest.raises(InvalidArgument, match="damaged") as caught:
        await upload(alice, archive("zip"), "a.zip")
    assert [found.field for found in caught.value.problems] == ["data"]
    assert caught.value.reason == "DATASET_INVALID"
    assert await nothing_is_left(service)


async def test_without_a_trainer_a_dataset_is_kept_and_checked_when_it_comes_again(
    service: Service, alice: Client
) -> None:
    first = await upload(alice)
    assert (first.format, first.samples) == ("", 0)
    service.dataset_checker.found = Checked(40, "instruction", [])
    again = await upload(alice)
    assert (again.id, again.format, again.samples) == (first.id, "instruction", 40)


@sqlite_only
async def test_pictures_are_not_checked_as_text(service: Service, alice: Client) -> None:
    service.dataset_checker.error = InvalidArgument("no rows")
    assert (await upload(alice, archive("zip"), "cats.zip", type="image_classifier")).type == "image_classifier"


async def test_an_unreachable_trainer_checks_nothing(unused_tcp_port: int) -> None:
    channel = open_channel(f"127.0.0.1:{unused_tcp_port}")
    assert await TrainerDatasetChecker(channel, 5.0).check("d", None) is None
    await channel.close()


async def test_a_dataset_in_use_cannot_be_deleted(service: Service, alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    with pytest.raises(FailedPrecondition, match=task.id) as caught:
        await delete(alice, dataset)
    assert caught.value.reason == "DATASET_IN_USE"
    attempt = await service.worker().claim(task.id)
    with pytest.raises(FailedPrecondition):
        await delete(alice, dataset)
    await attempt.say(completed=attempt.completed())
    await service.record_facts()
    await delete(alice, dataset)
    assert await nothing_is_left(service)
    assert (await alice.get(task.id)).spec.finetune.dataset.dataset_id == dataset.id


async def test_a_task_whose_dataset_is_gone_is_not_resumed(alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    await alice.stop(task.id)
    assert (await alice.resume(task.id)).state == task_pb2.STATE_PENDING
    await alice.stop(task.id)
    await delete(alice, dataset)
    with pytest.raises(FailedPrecondition, match="deleted") as caught:
        await alice.resume(task.id)
    assert caught.value.reason == "DATASET_DELETED"


async def test_a_deleted_task_frees_its_dataset(alice: Client) -> None:
    dataset = await upload(alice)
    task = await alice.create(spec=training_on(dataset.id))
    await alice.delete(task.id)
    await delete(alice, dataset)


async def test_a_dataset_deleted_while_a_task_is_made_is_missed(service: Service, alice: Client) -> None:
    """The check before the transaction saw it, the transaction does not."""
    dataset = await upload(alice)

    async def delete_meanwhile(spec: Any, source: Any, identity: Any) -> list[Any]:
        await delete(alice, dataset)
        return []

    service.checker.problems = delete_meanwhile  # type: ignore[method-assign]
    with pytest.raises(InvalidArgument, match="there is no dataset"):
        await alice.create(spec=training_on(dataset.id))
    assert (await alice.page(with_total=True)).total_size == 0
