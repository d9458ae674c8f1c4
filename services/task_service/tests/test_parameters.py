"""The table of parameters over gRPC, as a surface's form shows it (T15, F12, M25-M34, M37)."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from parameterkit import PARAMETERS, SURFACES, ranges
from servicekit.errors import InvalidArgument
from services.task_service.tests.harness import Client
from task_service.parameters.servicer import listed
from tunesmith.task.v1 import parameter_service_pb2 as pb
from tunesmith.task.v1 import parameter_service_pb2_grpc


async def parameters(client: Client, **fields: str) -> dict[str, Any]:
    stub = parameter_service_pb2_grpc.ParameterServiceStub(client.channel)
    response = await stub.ListParameters(pb.ListParametersRequest(**fields))
    return {row.name: row for row in response.parameters}


async def test_a_form_is_drawn_from_the_service(alice: Client) -> None:
    native = await parameters(alice)
    assert list(native) == [row.name for row in PARAMETERS]
    rate = native["learning_rate"]
    assert (rate.path, rate.type, rate.label_zh) == ("training.learning_rate", "number", "学习率")
    assert (rate.minimum, rate.minimum_excluded, rate.maximum) == (0, True, 1)
    assert rate.default_value.number_value == 2e-4
    assert native["use_4bit"].switch
    assert not native["base_model"].HasField("default_value")
    assert "cosine" in native["lr_scheduler_type"].choices


async def test_m29_the_studios_form(alice: Client) -> None:
    studio = await parameters(alice, surface="studio", objective="sft")
    batch = studio["per_device_train_batch_size"]
    assert (batch.default_value.number_value, batch.minimum, batch.maximum) == (2, 1, 128)
    assert MessageToDict(studio["lora_target_modules"])["defaultValue"] == [
        "q_proj",
        "v_proj",
    ]
    assert studio["output_dir"].required
    assert "lora_r" not in await parameters(alice, surface="studio", objective="pretrain")
    assert "labels" not in studio


async def test_what_does_not_exist_is_refused(alice: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await parameters(alice, surface="studioo", objective="rl")
    assert {problem.field for problem in caught.value.problems} == {"surface", "objective"}


@pytest.mark.parametrize("surface", SURFACES)
def test_every_surface_has_a_form(surface: str) -> None:
    rows = {row.name: row for row in listed(surface, "sft")}
    for name, bounds in ranges(surface).items():
        if name in rows and bounds.at_least is not None:
            assert rows[name].minimum == bounds.at_least
