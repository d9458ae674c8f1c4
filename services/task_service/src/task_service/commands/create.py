"""Use case: create a task, exactly once for each request id."""

import hashlib
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import AlreadyExists, InvalidArgument, NotFound, Problem, Unimplemented
from servicekit.grpc_server import violations
from servicekit.identity import Principal
from task_service.availability import require_available
from task_service.commands.core import Core
from task_service.commands.create_checks import dependency_problems, text_problems, waits
from task_service.commands.new_task import NewTask
from task_service.commands.recorder import Recorder
from task_service.commands.repair import without_violations
from task_service.convert import task_message
from task_service.database.models import TaskRow
from task_service.database.tasks import TaskRepository
from task_service.datasets.use import dataset_problems, use_dataset
from task_service.defaults import fill
from task_service.domain.lifecycle import Lifecycle
from task_service.quotas.admission import require_quota
from task_service.sources.checkpoints import checkpoint_problems, source_of_checkpoint, use_checkpoint
from task_service.sources.use import Plan, plan_source, share_tasks, use_source
from task_service.sources.wish import source_wish
from task_service.spec_check import Metadata, SpecChecker
from task_service.templates.applying import apply_template, template_misfits
from task_service.templates.use_cases import Templates
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2


@dataclass(frozen=True, slots=True)
class CreateTask:
    """Accepts tasks."""

    core: Core
    checker: SpecChecker | None = field(default=None)

    async def __call__(
        self, principal: Principal, request: task_service_pb2.CreateTaskRequest, identity: Metadata | None = None
    ) -> task_pb2.Task:
        """The new task, or the one that the same request made before. identity is that of the caller, to be passed on.

        Raises Unimplemented, InvalidArgument with every problem, FailedPrecondition when its checkpoint quota is spent,
        or AlreadyExists for a used request id.
        """
        fingerprint = request_fingerprint(request)
        async with self.core.database.caller(), self.core.database.reading() as session:
            existing = await _made_before(session, principal, request, fingerprint)
        if existing is not None:
            return existing
        request, template_fields = await self._with_template(principal, request)
        if broken := violations(request):
            raise InvalidArgument(problems=broken + await self._other_problems(principal, request, broken, identity))
        require_available(request.spec)
        problems, plan = await self._problems(principal, request, request.spec, identity)
        if problems:
            raise InvalidArgument(problems=problems)
        spec = spec_pb2.TaskSpec()
        spec.CopyFrom(request.spec)
        sources = fill(spec, request.default_fields, template_fields)
        new = NewTask(principal.user, request, spec, sources, fingerprint)
        if request.validate_only:
            async with self.core.database.caller(), self.core.database.reading(single_statement=True) as session:
                await require_quota(session, self.core.checkpoint_quota, principal.user, spec)
            return new.preview(_depends_on(request, plan))
        return await self._create(principal, new)

    async def _with_template(
        self, principal: Principal, request: task_service_pb2.CreateTaskRequest
    ) -> tuple[task_service_pb2.CreateTaskRequest, set[str]]:
        """The request as it is with its template's parameters, and the paths of those. Raises InvalidArgument."""
        if not request.template_id:
            return request, set()
        try:
            template = await Templates(self.core.database).get(
                principal, request.template_id, max(request.template_version, 0)
            )
        except NotFound as error:
            raise InvalidArgument(problems=[Problem("template_id", error.message)]) from None
        if problems := template_misfits(template.spec, request.spec, request.template_id):
            raise InvalidArgument(problems=problems)
        filled = task_service_pb2.CreateTaskRequest()
        filled.CopyFrom(request)
        return filled, apply_template(template.spec, filled.spec.finetune, request.default_fields)

    async def _problems(
        self,
        principal: Principal,
        request: task_service_pb2.CreateTaskRequest,
        spec: spec_pb2.TaskSpec,
        identity: Metadata | None,
    ) -> tuple[list[Problem], Plan | None]:
        """What is wrong with a request that has this spec, and what an evaluation or export starts from."""
        problems = text_problems(request)
        async with self.core.database.caller(), self.core.database.reading() as session:
            problems += await dependency_problems(session, principal, request)
            problems += await checkpoint_problems(session, principal, spec)
            plan = await plan_source(session, principal, spec, request.depends_on)
            source = plan.source if plan else None
            problems += plan.problems if plan else []
            problems += await dataset_problems(session, principal, spec, source)
        if self.checker is not None and (plan is None or not plan.problems):
            known = {problem.field for problem in problems}
            found = await self.checker.problems(_as_checked(spec), source, identity)
            problems += [problem for problem in found if problem.field not in known]
        return problems, plan

    async def _other_problems(
        self,
        principal: Principal,
        request: task_service_pb2.CreateTaskRequest,
        broken: list[Problem],
        identity: Metadata | None,
    ) -> list[Problem]:
        """What is wrong beside the fields that break a rule."""
        spec = without_violations(request, broken)
        if spec is None:
            return []
        try:
            require_available(spec)
            return (await self._problems(principal, request, spec, identity))[0]
        except Unimplemented as error:
            return [Problem("spec", error.message)]

    async def _create(self, principal: Principal, new: NewTask) -> task_pb2.Task:
        async def transaction(session: AsyncSession) -> task_pb2.Task:
            existing = await _made_before(session, principal, new.request, new.fingerprint)
            return existing or await self._insert(session, principal, new)

        try:
            async with self.core.database.caller():
                task = await self.core.database.transaction(transaction)
        except IntegrityError:
            # Another call with the same request id committed first.
            async with self.core.database.reading() as session:
                existing = await _made_before(session, principal, new.request, new.fingerprint)
            if existing is None:
                raise
            return existing
        self.core.outbox.wake()
        return task

    async def _insert(self, session: AsyncSession, principal: Principal, new: NewTask) -> task_pb2.Task:
        """Records a task. Raises InvalidArgument or FailedPrecondition for what has changed since it was checked."""
        request, spec = new.request, new.spec
        await require_quota(session, self.core.checkpoint_quota, principal.user, spec)
        wish = source_wish(spec)
        sources = [wish.task_id if wish else "", source_of_checkpoint(spec)]
        rows = await share_tasks(session, principal, {*request.depends_on, *filter(None, sources)})
        plan = await plan_source(session, principal, spec, request.depends_on)
        if plan is not None and plan.problems:
            raise InvalidArgument(problems=plan.problems)
        depends_on = _depends_on(request, plan)
        blocked = waits(depends_on, rows)
        row = await new.insert(session, depends_on)
        await use_dataset(session, principal, row, spec, plan.source if plan else None)
        await use_checkpoint(session, principal, row, spec)
        if plan is not None:
            use_source(session, row, plan)
        recorder = Recorder(session, self.core.outbox, row.create_time)
        lifecycle = Lifecycle(blocked=blocked)
        await recorder.apply(row, lifecycle, lifecycle.created())
        return await recorder.message(row)


def request_fingerprint(request: task_service_pb2.CreateTaskRequest) -> str:
    """SHA-256 of what was asked for, whatever the request id."""
    body = task_service_pb2.CreateTaskRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    body.ClearField("validate_only")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


async def _made_before(
    session: AsyncSession, principal: Principal, request: task_service_pb2.CreateTaskRequest, fingerprint: str
) -> task_pb2.Task | None:
    if not request.request_id or "\0" in request.request_id or request.validate_only:
        return None
    row = await session.scalar(
        select(TaskRow).where(TaskRow.owner == principal.user, TaskRow.request_id == request.request_id)
    )
    if row is None:
        return None
    if row.delete_time or row.request_hash != fingerprint:
        what = "for a task that was deleted since" if row.delete_time else "with another body"
        raise AlreadyExists(
            f"request id {request.request_id!r} was used before, {what}",
            reason="REQUEST_ID_USED",
            metadata={} if row.delete_time else {"task_id": row.id},
        )
    (details,) = await TaskRepository(session).details([row])
    return task_message(details)


def _depends_on(request: task_service_pb2.CreateTaskRequest, plan: Plan | None) -> list[str]:
    return plan.depends_on(request.depends_on) if plan else list(request.depends_on)


def _as_checked(spec: spec_pb2.TaskSpec) -> spec_pb2.TaskSpec:
    """The spec that the service which will do the work looks at: what a trainer misses it fills in by itself."""
    if spec.HasField("finetune"):
        return spec
    filled = spec_pb2.TaskSpec()
    filled.CopyFrom(spec)
    fill(filled, ())
    return filled
