"""An estimate as the gRPC service answers it."""

from collections.abc import Sequence

from trainer_service.estimates.advice import notes
from trainer_service.estimates.estimator import Estimate
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer


def answer(estimate: Estimate, more_notes: Sequence[str] = ()) -> trainer.EstimateResourcesResponse:
    """The message of an estimate; more_notes come before its own."""
    memory, room = estimate.memory, estimate.room
    methods = [
        trainer.MethodEstimate(
            method=spec_pb2.Method.Value(f"METHOD_{method}"),
            memory_bytes=needed,
            fits=needed <= estimate.device.memory_total,
        )
        for method, needed in estimate.by_method.items()
    ]
    return trainer.EstimateResourcesResponse(
        memory_bytes=memory.total,
        disk_bytes=room.needed,
        checkpoints=estimate.saved,
        duration_seconds=estimate.seconds,
        memory=trainer.MemoryEstimate(
            weights=memory.weights,
            gradients=memory.gradients,
            optimizer=memory.optimizer,
            activations=memory.activations,
            overhead=memory.overhead,
        ),
        methods=methods,
        memory_total_bytes=estimate.device.memory_total,
        disk_free_bytes=room.free,
        checkpoint_bytes=estimate.files.checkpoint,
        checkpoints_kept=estimate.kept,
        total_steps=estimate.steps.total,
        rows=estimate.steps.rows,
        fits=estimate.fits_memory and estimate.fits_disk,
        notes=[*more_notes, *notes(estimate)],
        steps_per_second=estimate.steps_per_second,
    )
