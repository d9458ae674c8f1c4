"""Quotas as messages."""

from task_service.convert import required_timestamp
from task_service.domain.quota import Quota, next_period
from tunesmith.task.v1 import quota_service_pb2 as pb
from tunesmith.task.v1 import task_service_pb2


def quota_message(owner: str, quota: Quota, time: int) -> pb.Quota:
    """A user's quota as it is at a time."""
    return pb.Quota(
        user=owner,
        monthly_allowance=quota.allowance,
        used=quota.used,
        remaining=quota.remaining,
        exhausted_action=pb.QuotaAction.ValueType(quota.action),
        low=quota.low,
        reset_time=required_timestamp(next_period(time)),
    )


def allowance_message(quota: Quota) -> task_service_pb2.CheckpointAllowance:
    """What a worker needs to know of its task's owner."""
    return task_service_pb2.CheckpointAllowance(
        remaining=quota.remaining, exhausted_action=pb.QuotaAction.ValueType(quota.action)
    )
