"""Why a training ends without a model; each becomes one error event."""

from workerkit.child.errors import RecipeError


class NotImplementedYet(RecipeError):
    """This version does not train this."""

    reason = "NOT_IMPLEMENTED"


class LossDiverged(RecipeError):
    """The loss is no longer a number."""

    reason = "LOSS_DIVERGED"


class CheckpointUnusable(RecipeError):
    """The checkpoint to go on from does not fit the job."""

    reason = "CHECKPOINT_UNUSABLE"
