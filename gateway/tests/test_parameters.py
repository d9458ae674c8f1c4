"""The parameter table behind the gateway: what a form asks for (M25-M34)."""

from typing import Any

from gateway.setup import describe


async def test_a_form_is_drawn_over_http(gateway: Any) -> None:
    response = await gateway.client.get("/v1/parameters", params={"surface": "studio", "objective": "sft"})
    rows = {row["name"]: row for row in response.json()["parameters"]}
    assert rows["learning_rate"]["label_zh"] == "学习率"
    assert (rows["learning_rate"]["default_value"], rows["learning_rate"]["maximum"]) == (2e-4, 0.1)
    assert rows["lora_target_modules"]["default_value"] == ["q_proj", "v_proj"]
    assert rows["fp16"]["default_value"] is True
    refused = await gateway.client.get("/v1/parameters", params={"surface": "nowhere"})
    assert refused.status_code == 400


def test_parameters_are_described() -> None:
    operation = describe()["paths"]["/v1/parameters"]["get"]
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"surface", "objective"}
