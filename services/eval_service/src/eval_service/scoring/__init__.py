"""The scores of checkpoints: from texts, probabilities and classes to numbers with their uncertainty."""
