"""Use cases that look at datasets or delete them; each sees what the caller may see."""

from dataclasses import dataclass

from servicekit.identity import Principal
from task_service.database.access import Database
from task_service.database.models import DatasetRow
from task_service.database.paging import DEFAULT_PAGE_SIZE, digest, page_token, parse_page_token
from task_service.datasets.records import DatasetRepository
from tunesmith.task.v1 import dataset_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Datasets:
    """The datasets there are."""

    database: Database

    async def get(self, principal: Principal, dataset_id: str) -> DatasetRow:
        """A dataset. Raises NotFound."""
        async with self.database.caller(), self.database.reading(single_statement=True) as session:
            return await DatasetRepository(session).get(principal, dataset_id)

    async def page(self, principal: Principal, request: pb.ListDatasetsRequest) -> tuple[list[DatasetRow], str]:
        """A page of the caller's own, newest first, and the token of the next. Raises InvalidArgument."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        query = digest(["datasets", request.type, request.name])
        (before,) = parse_page_token(request.page_token, query, int) if request.page_token else (0,)
        async with self.database.caller(), self.database.reading(single_statement=True) as session:
            rows = await DatasetRepository(session).page(
                principal.user, kind=request.type, name=request.name, before=before, limit=size + 1
            )
        token = page_token(query, rows[size - 1].number) if len(rows) > size else ""
        return rows[:size], token

    async def delete(self, principal: Principal, dataset_id: str) -> None:
        """Removes a dataset. Raises NotFound, or FailedPrecondition while an unfinished task uses it."""
        async with self.database.caller():
            await self.database.transaction(lambda session: DatasetRepository(session).delete(principal, dataset_id))
