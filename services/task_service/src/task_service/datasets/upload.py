"""Use case: store an uploaded file as a version of a dataset, whole or not at all."""

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import CursorResult, delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, Unavailable
from servicekit.identity import Principal
from servicekit.objects import ObjectStore
from task_service.database.access import Database, current_time
from task_service.database.models import DatasetRow, GarbageRow
from task_service.datasets.checking import PICTURES, DatasetChecker, Metadata
from task_service.datasets.files import clean_file_name, ending, unreadable
from task_service.datasets.receiving import Inbox, Received, Requests, receive
from task_service.datasets.records import DatasetRepository, folder
from task_service.datasets.storage import StorageLimit
from task_service.ids import new_id
from tunesmith.task.v1 import dataset_service_pb2 as pb

DEFAULT_TYPE = "llm"
TRIES = 5
# Longer than any upload: until then what it has stored is safe from the garbage collector.
UPLOAD_MICROSECONDS = 24 * 3600 * 1_000_000

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    type: str
    file_name: str
    ending: str


@dataclass(frozen=True, slots=True)
class UploadDataset:
    """Takes uploads in. The object's removal is planned before it is written and called off with the row's commit."""

    database: Database
    objects: ObjectStore
    checker: DatasetChecker | None
    inbox: Inbox
    storage: StorageLimit

    async def __call__(self, principal: Principal, requests: Requests, identity: Metadata | None) -> DatasetRow:
        """The new version, or the one that has the same content. Raises InvalidArgument or ResourceExhausted."""
        async with receive(requests, self.inbox, principal.user) as received:
            named = _named(received.header)
            await _require_readable(received.path, named)
            row, is_new = await self._keep(principal, received, named)
        return await self._checked(principal, row, identity, is_new=is_new)

    async def _keep(self, principal: Principal, received: Received, named: _Named) -> tuple[DatasetRow, bool]:
        async with self.database.reading() as session:
            versions = await DatasetRepository(session).versions(principal.user, named.name)
            if (same := _same(versions, received, named)) is not None:
                return same, False
            await self.storage.require_room(session, principal.user, received.size)
        row = DatasetRow(
            id=new_id(),
            owner=principal.user,
            name=named.name,
            type=named.type,
            file_name=named.file_name,
            size=received.size,
            sha256=received.sha256,
        )
        row.object_key = f"{folder(row.id)}{named.file_name}"
        removal = await self.database.transaction(lambda session: _plan_removal(session, row.id))
        try:
            await self.objects.put_file(row.object_key, received.path)
            kept = await self._insert(row, received, named, removal)
        except BaseException:
            await self.database.transaction(lambda session: _remove_now(session, removal))
            raise
        if kept is not row:
            await self.database.transaction(lambda session: _remove_now(session, removal))
        return kept, kept is row

    async def _insert(self, row: DatasetRow, received: Received, named: _Named, removal: int) -> DatasetRow:
        """The row, or the one of an upload of the same content that was faster."""

        async def transaction(session: AsyncSession) -> DatasetRow:
            versions = await DatasetRepository(session).versions(row.owner, row.name)
            if (same := _same(versions, received, named)) is not None:
                return same
            called_off = await session.execute(delete(GarbageRow).where(GarbageRow.number == removal))
            assert isinstance(called_off, CursorResult)
            if not called_off.rowcount:
                raise Unavailable("the upload took too long and was given up; try again", reason="UPLOAD_GIVEN_UP")
            await self.storage.take_room(session, row.owner, row.size)
            row.version = versions[-1].version + 1 if versions else 1
            row.create_time = await current_time(session)
            session.add(row)
            await session.flush()
            return row

        for _ in range(TRIES):
            try:
                return await self.database.transaction(transaction)
            except IntegrityError:
                continue  # another upload took the version
        raise Unavailable("too many uploads under one name at once; try again", reason="UPLOAD_GIVEN_UP")

    async def _checked(
        self, principal: Principal, row: DatasetRow, identity: Metadata | None, *, is_new: bool
    ) -> DatasetRow:
        """The row with what a trainer says of its rows; a new dataset that it cannot read at all is not kept."""
        if self.checker is None or row.format or row.type in PICTURES:
            return row
        try:
            found = await self.checker.check(row.id, identity)
        except InvalidArgument as error:
            if not is_new:
                return row
            await self._forget(principal, row)
            found_bad = [Problem("data", problem.message) for problem in error.problems]
            raise InvalidArgument(
                problems=found_bad or [Problem("data", error.message)], reason=error.reason
            ) from error
        if found is not None:
            row.samples, row.format, row.problems = found.samples, found.format, found.problems
            values = {"samples": found.samples, "format": found.format, "problems": found.problems}
            await self.database.transaction(
                lambda session: session.execute(
                    update(DatasetRow).where(DatasetRow.number == row.number).values(values)
                )
            )
        return row

    async def _forget(self, principal: Principal, row: DatasetRow) -> None:
        # Somebody may have been faster to delete it, or to use it: then its task will say what is wrong.
        with contextlib.suppress(NotFound, FailedPrecondition):
            await self.database.transaction(lambda session: DatasetRepository(session).delete(principal, row.id))


def _named(header: pb.DatasetHeader) -> _Named:
    """How the dataset is called. Raises InvalidArgument with everything that is wrong with that."""
    file_name = clean_file_name(header.file_name)
    end = ending(file_name)
    name = header.name.strip() or file_name.removesuffix(file_name[len(file_name) - len(end) :])
    problems = [
        Problem(f"header.{field}", "must not contain control characters")
        for field, text in (("name", header.name), ("type", header.type))
        if _CONTROL.search(text)
    ]
    if not end:
        kinds = ".jsonl, .json, .csv, .tsv, .parquet, .txt, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"
        message = f"{header.file_name!r} has no ending that tells how to read it: {kinds}"
        problems.append(Problem("header.file_name", message))
    if problems:
        raise InvalidArgument(problems=problems, reason="DATASET_UNREADABLE")
    return _Named(name[:200], header.type or DEFAULT_TYPE, file_name, end)


async def _require_readable(path: Path, named: _Named) -> None:
    if problem := await asyncio.to_thread(unreadable, path, named.ending):
        raise InvalidArgument(problems=[Problem("data", f"{named.file_name}: {problem}")], reason="DATASET_UNREADABLE")


def _same(versions: Sequence[DatasetRow], received: Received, named: _Named) -> DatasetRow | None:
    """The version with the same content, read the same way."""
    wanted = (received.sha256, named.type, named.ending)
    return next((row for row in versions if (row.sha256, row.type, ending(row.file_name)) == wanted), None)


async def _plan_removal(session: AsyncSession, dataset_id: str) -> int:
    """The number of the plan."""
    row = GarbageRow(prefix=folder(dataset_id), due_time=await current_time(session) + UPLOAD_MICROSECONDS)
    session.add(row)
    await session.flush()
    return row.number


async def _remove_now(session: AsyncSession, removal: int) -> None:
    now = await current_time(session)
    await session.execute(update(GarbageRow).where(GarbageRow.number == removal).values(due_time=now))
