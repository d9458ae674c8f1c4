"""Lists: filters, orders, pages, and whose tasks they show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from servicekit.errors import InvalidArgument
from servicekit.identity import Principal, Role
from services.task_service.tests.harness import Client, Service, language_model_spec
from task_service.database.listing import TaskQuery, _conditions, _ordered, label_digest
from task_service.database.models import TaskRow
from tunesmith.task.v1 import task_pb2, task_service_pb2

Order = task_service_pb2.TaskOrder


def names(response: task_service_pb2.ListTasksResponse) -> list[str]:
    return [task.name for task in response.tasks]


async def test_newest_first_and_only_ones_own(service: Service, alice: Client, bob: Client) -> None:
    for name in ("a", "b", "c"):
        await alice.create(name)
    await bob.create("foreign")
    page = await alice.page(with_total=True)
    assert (names(page), page.total_size, page.next_page_token) == (["c", "b", "a"], 3, "")
    everything = await service.client("root", Role.ADMIN).page(with_total=True)
    assert (names(everything), everything.total_size) == (["foreign", "c", "b", "a"], 4)


@pytest.mark.parametrize(
    "order",
    [
        Order.TASK_ORDER_UNSPECIFIED,
        Order.TASK_ORDER_CREATE_TIME,
        Order.TASK_ORDER_UPDATE_TIME,
        Order.TASK_ORDER_NAME,
        Order.TASK_ORDER_START_TIME,
    ],
)
@pytest.mark.parametrize("ascending", [False, True])
async def test_pages_show_every_task_once(service: Service, alice: Client, order: Order, ascending: bool) -> None:
    tasks = [await alice.create(name) for name in ("b", "a", "b", "c", "a", "b", "d")]
    for task in tasks[::2]:
        await service.worker().claim(task.id)
    whole = await alice.page(order_by=order, ascending=ascending)
    seen, token = [], ""
    while True:
        page = await alice.page(order_by=order, ascending=ascending, page_size=2, page_token=token)
        seen += [task.id for task in page.tasks]
        token = page.next_page_token
        if not token:
            break
    assert seen == [task.id for task in whole.tasks]
    assert sorted(seen) == sorted(task.id for task in tasks)
    if order == Order.TASK_ORDER_NAME:
        assert names(whole) == sorted(names(whole), reverse=not ascending)


async def test_new_tasks_do_not_shift_pages(alice: Client) -> None:
    for number in range(4):
        await alice.create(f"t{number}")
    first = await alice.page(page_size=2)
    await alice.create("newer")
    second = await alice.page(page_size=2, page_token=first.next_page_token)
    assert (names(first), names(second)) == (["t3", "t2"], ["t1", "t0"])


async def test_numbered_pages(alice: Client) -> None:
    for number in range(5):
        await alice.create(f"t{number}")
    page = await alice.page(page_size=2, offset=4, with_total=True)
    assert (names(page), page.total_size) == (["t0"], 5)
    assert names(await alice.page(page_size=2, offset=9)) == []


async def test_a_token_is_for_its_query_alone(alice: Client) -> None:
    for number in range(3):
        await alice.create(f"t{number}")
    token = (await alice.page(page_size=1)).next_page_token
    for bad in (
        {"page_token": token, "keyword": "x"},
        {"page_token": token, "order_by": Order.TASK_ORDER_NAME},
        {"page_token": "nonsense"},
        {"page_token": "bnVsbA=="},
    ):
        with pytest.raises(InvalidArgument) as caught:
            await alice.page(page_size=1, **bad)
        assert caught.value.reason == "BAD_PAGE_TOKEN"


async def test_filters(service: Service, alice: Client) -> None:
    spec = language_model_spec()
    spec.finetune.base_model = "THUDM/chatglm3-6b"
    glm = await alice.create("My GLM", description="Answers 100% of questions", spec=spec, labels={"team": "a"})
    other = await alice.create("other_1", labels={"team": "b", "long": "x" * 60_000})
    await alice.stop(other.id)
    for expected, fields in [
        (["My GLM"], {"name_contains": "glm"}),
        (["My GLM"], {"base_model_contains": "CHATGLM"}),
        (["My GLM"], {"keyword": "100%"}),
        (["other_1"], {"keyword": "r_1"}),
        ([], {"name_contains": "%"}),
        ([], {"name_contains": "My_GLM"}),
        (["other_1"], {"states": [task_pb2.STATE_STOPPED]}),
        (["other_1", "My GLM"], {"states": [task_pb2.STATE_STOPPED, task_pb2.STATE_PENDING]}),
        (["other_1", "My GLM"], {"kinds": [task_pb2.KIND_FINETUNE]}),
        ([], {"kinds": [task_pb2.KIND_EXPORT]}),
        (["My GLM"], {"labels": {"team": "a"}}),
        (["other_1"], {"labels": {"team": "b", "long": "x" * 60_000}}),
        ([], {"labels": {"team": "a", "long": "x"}}),
        ([], {"name_contains": "nul\0"}),
    ]:
        page = await alice.page(with_total=True, **fields)
        assert (names(page), page.total_size) == (expected, len(expected)), fields
    assert glm.number < other.number


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_label_digests_tell_labels_apart(labels: dict[str, str]) -> None:
    pairs = set(labels.items()) | {(value, key) for key, value in labels.items()}
    assert len({label_digest(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
@pytest.mark.parametrize("order", [0, 2, 3, 4])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_lists_are_read_in_the_order_of_an_index(service: Service, role: Role, order: int) -> None:
    """No sorting and no scan, whatever the number of tasks; counting never visits the rows."""
    from sqlalchemy import func, select
    from sqlalchemy.dialects import sqlite

    query = TaskQuery(states=(2,), kinds=(1,), order_by=order)
    conditions = _conditions(Principal("alice", role), query)
    listing = _ordered(select(TaskRow).where(*conditions), query).limit(50)
    count = select(func.count()).select_from(TaskRow).where(*conditions)
    async with service.core.database.sessions() as session:
        plans = []
        for statement in (listing, count):
            compiled = statement.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
            rows = await session.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))
            plans.append(" ".join(row[3] for row in rows))
    assert "USE TEMP B-TREE" not in plans[0]
    assert "USING INDEX" in plans[0]
    assert "USING COVERING INDEX" in plans[1]
