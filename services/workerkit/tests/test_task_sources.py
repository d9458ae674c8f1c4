"""Whose word is taken for what a task has produced."""

import asyncio

import pytest

from servicekit.errors import NotFound
from servicekit.identity import Principal, Role, set_current_principal
from services.workerkit.tests.known_tasks import TaskOffice
from tunesmith.task.v1 import task_service_pb2
from workerkit.sources import trusted_source

CLAIM = task_service_pb2.TaskSource(task_id="a-training", name="as the caller says")


async def taken(office: TaskOffice, user: str, role: Role) -> str:
    """The name of the source that is taken from a caller."""

    async def serve() -> str:
        set_current_principal(Principal(user, role))
        return (await trusted_source(office.stub, CLAIM, CLAIM.task_id, office.token(user, role))).name

    return await asyncio.create_task(serve())  # in a context of its own


async def test_only_a_service_is_believed(office: TaskOffice) -> None:
    office.known.add(task_service_pb2.TaskSource(task_id="a-training", name="as it is"), owner="ann")
    assert await taken(office, "worker", Role.SERVICE) == "as the caller says"
    assert await taken(office, "ann", Role.USER) == "as it is"
    for role in (Role.USER, Role.ADMIN):
        with pytest.raises(NotFound, match="there is no task a-training"):
            await taken(office, "bob", role)
