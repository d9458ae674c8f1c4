"""What a training says of its failures."""

from trainer_service.recipes.remedies import OUT_OF_MEMORY
from workerkit.child.failures import Outlook

OUTLOOK = Outlook("TRAINING_FAILED", OUT_OF_MEMORY, "checkpoints saved before are intact")
