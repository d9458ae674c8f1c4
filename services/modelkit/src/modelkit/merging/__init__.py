"""A base model and an adapter made one, tensor by tensor."""

from modelkit.merging.plan import MergedTensor, MergePlan
from modelkit.merging.streaming import MergeStopped, merge

__all__ = ["MergePlan", "MergeStopped", "MergedTensor", "merge"]
