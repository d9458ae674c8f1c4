"""Whether a task may begin although its owner's quota is spent."""

from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import FailedPrecondition
from task_service.convert import as_datetime
from task_service.domain.quota import QuotaAction, next_period
from task_service.quotas.records import QuotaRepository
from tunesmith.task.v1 import spec_pb2

NEVER = spec_pb2.INTERVAL_STRATEGY_NO


def saves_checkpoints(spec: spec_pb2.TaskSpec) -> bool:
    """Whether a task, its defaults filled in, stores checkpoints of its own accord."""
    training = spec.finetune.training
    return spec.HasField("finetune") and (training.save_strategy != NEVER or training.save_interval_minutes > 0)


async def require_quota(session: AsyncSession, default: int, owner: str, spec: spec_pb2.TaskSpec) -> None:
    """Raises FailedPrecondition for a task that would be stopped at its first checkpoint."""
    if not saves_checkpoints(spec):
        return
    quota, time = await QuotaRepository(session, default).at_this_time(owner)
    if quota.exhausted and quota.action is QuotaAction.STOP:
        reset = as_datetime(next_period(time))
        raise FailedPrecondition(
            f"the checkpoint quota of {quota.allowance} a month is spent: wait until {reset:%Y-%m-%d}, have an "
            "administrator raise it, or train without checkpoints (save_strategy NO)",
            reason="QUOTA_EXHAUSTED",
            metadata={"reset_time": reset.isoformat()},
        )
