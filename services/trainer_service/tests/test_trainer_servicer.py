"""The gRPC service over the wire: devices, environment, models, estimates."""

import os
from pathlib import Path

import pytest

from servicekit.errors import InvalidArgument, Unavailable, Unimplemented
from servicekit.grpc_client import bearer
from services.trainer_service.tests.bench import MakeSpec
from services.trainer_service.tests.trainer_stub import Peer, Stub, check, peer, stub, turns, uploads
from tunesmith.task.v1 import quota_service_pb2, spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer

__all__ = ["peer", "stub", "turns", "uploads"]


async def test_devices(stub: Stub) -> None:
    answer = await stub.ListDevices(trainer.ListDevicesRequest())
    processor = answer.devices[0]
    assert (processor.id, processor.type) == ("cpu", "cpu")
    assert processor.cores == os.cpu_count()
    assert processor.memory_total > processor.memory_free > 0
    assert all(device.type == "cuda" for device in answer.devices[1:])


async def test_environment(stub: Stub, peer: Peer) -> None:
    answer = await stub.CheckEnvironment(trainer.CheckEnvironmentRequest(), timeout=50)
    checks = {check.name: check for check in answer.checks}
    assert {"python", "torch", "transformers", "peft", "memory", "scratch space", "training step"} <= set(checks)
    assert checks["training step"].ok, checks["training step"]
    assert checks["torch"].found[0].isdigit()
    assert checks["object store"].ok
    assert checks["message broker"].ok
    assert checks["task service"].ok
    assert answer.ready == all(check.ok for check in answer.checks)
    peer.error = Unavailable("nobody there")
    answer = await stub.CheckEnvironment(trainer.CheckEnvironmentRequest(), timeout=50)
    (found,) = [check for check in answer.checks if check.name == "task service"]
    assert (found.ok, found.found) == (False, "nobody there")
    assert found.advice
    assert not answer.ready


async def test_base_models(stub: Stub, model: Path) -> None:
    answer = await stub.ListBaseModels(trainer.ListBaseModelsRequest(modality="language_model"))
    found = {entry.id: entry for entry in answer.models}
    assert found[str(model)].local
    assert found[str(model)].family == "llama"
    assert not found["THUDM/chatglm3-6b"].local
    answer = await stub.ListBaseModels(trainer.ListBaseModelsRequest(modality="object_detector"))
    assert {entry.id for entry in answer.models} == {"yolov8n", "yolov8s"}


async def test_what_this_version_cannot_do_is_unimplemented(stub: Stub, make_spec: MakeSpec) -> None:
    for more in ({"language_model": None, "object_detector": spec_pb2.ObjectDetectorParameters()},):
        with pytest.raises(Unimplemented):
            await check(stub, make_spec({}, **more))
    other = spec_pb2.TaskSpec(prepare=spec_pb2.PrepareSpec(dataset=spec_pb2.DatasetSource(path="x")))
    with pytest.raises(Unimplemented):
        await stub.CheckSpec(trainer.CheckSpecRequest(spec=other))


async def test_estimates(stub: Stub, make_spec: MakeSpec) -> None:
    """T20, M23: figures of memory, disk, checkpoints and steps, for the method asked for and for the others."""
    spec = make_spec({})
    spec.training.max_steps, spec.training.save_steps, spec.training.save_total_limit = 1000, 100, 3
    answer = await stub.EstimateResources(trainer.EstimateResourcesRequest(spec=spec))
    assert (answer.total_steps, answer.checkpoints, answer.checkpoints_kept, answer.rows) == (1000, 10, 3, 1)
    memory = answer.memory
    parts = memory.weights + memory.gradients + memory.optimizer + memory.activations + memory.overhead
    assert answer.memory_bytes == parts
    by_method = {item.method: item.memory_bytes for item in answer.methods}
    assert by_method[spec_pb2.METHOD_FULL] == answer.memory_bytes
    assert set(by_method) == {spec_pb2.METHOD_FULL, spec_pb2.METHOD_LORA, spec_pb2.METHOD_QLORA}
    assert answer.disk_free_bytes > answer.disk_bytes > 3 * answer.checkpoint_bytes > 0
    assert answer.memory_total_bytes > 0
    assert answer.fits
    assert answer.duration_seconds == 0
    assert any("duration is not known" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (quota_service_pb2.QUOTA_ACTION_CONTINUE_UNSAVED, "goes on without saving"),
        (quota_service_pb2.QUOTA_ACTION_STOP, "saves a last checkpoint and stops"),
    ],
)
async def test_estimates_compare_checkpoints_with_the_quota(
    stub: Stub, peer: Peer, make_spec: MakeSpec, action: quota_service_pb2.QuotaAction.ValueType, words: str
) -> None:
    spec = make_spec({})
    spec.training.max_steps, spec.training.save_steps = 1000, 100
    request = trainer.EstimateResourcesRequest(spec=spec)

    async def estimate() -> tuple[trainer.EstimateResourcesResponse, str]:
        answer = await stub.EstimateResources(request, metadata=bearer("owner"))
        return answer, "\n".join(note for note in answer.notes if "quota" in note)

    answer, told = await estimate()
    assert (answer.quota, told, peer.asked_by) == (peer.quota, "", ["Bearer owner"])
    for remaining in (10, 9, 0):
        peer.quota = quota_service_pb2.Quota(monthly_allowance=50, remaining=remaining, exhausted_action=action)
        answer, told = await estimate()
        assert (answer.quota.remaining, answer.fits) == (remaining, True)
        assert (f"{remaining} left this month and 10 would be saved" in told, words in told) == (remaining < 10,) * 2
    peer.error = Unavailable("nobody there")
    answer, told = await estimate()
    assert (answer.HasField("quota"), told, answer.checkpoints) == (False, "", 10)


async def test_nothing_to_estimate(stub: Stub, make_spec: MakeSpec) -> None:
    for more, field in (
        ({"base_model": "/nowhere"}, "spec.base_model"),
        ({"base_model": "task:01abc"}, "spec.base_model"),
        ({"dataset": spec_pb2.DatasetSource(path="/nowhere")}, "spec.dataset.path"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await stub.EstimateResources(trainer.EstimateResourcesRequest(spec=make_spec({}, **more)))
        assert [problem.field for problem in caught.value.problems] == [field]


async def test_rules_of_the_proto_hold_here_too(stub: Stub) -> None:
    with pytest.raises(InvalidArgument):
        await stub.ValidateDataset(trainer.ValidateDatasetRequest())
