"""What the checkpoint quota of whoever asks means for an estimate."""

import logging
from typing import Any, Protocol

from servicekit.errors import TunesmithError
from tunesmith.task.v1 import quota_service_pb2 as quotas
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from workerkit.sources import identity

logger = logging.getLogger(__name__)

SECONDS = 5.0
WHEN_SPENT = {
    quotas.QUOTA_ACTION_CONTINUE_UNSAVED: "the task then goes on without saving, and its finished model is kept",
    quotas.QUOTA_ACTION_STOP: "the task then saves a last checkpoint and stops",
}


class GetQuota(Protocol):
    """The task service's GetQuota."""

    def __call__(self, request: quotas.GetQuotaRequest, *, timeout: float, metadata: Any = None) -> Any:
        """An awaitable of the response."""


async def add_quota(estimate: trainer.EstimateResourcesResponse, get_quota: GetQuota, token: str) -> None:
    """Adds the quota of the token's user, and a note when it has less left than the training would save.

    An estimate is worth having without it: what the task service cannot answer is left out.
    """
    try:
        answer = await get_quota(quotas.GetQuotaRequest(), timeout=SECONDS, metadata=identity(token))
    except TunesmithError as error:
        logger.warning("an estimate tells no quota: %s", error)
        return
    quota: quotas.Quota = answer.quota
    estimate.quota.CopyFrom(quota)
    if 0 <= quota.remaining < estimate.checkpoints:
        estimate.notes.append(
            f"the checkpoint quota has {quota.remaining} left this month and {estimate.checkpoints} would be saved: "
            f"{WHEN_SPENT[quota.exhausted_action]}. Save less often (save_steps), or ask an administrator for more"
        )
