"""The parameter table behind the gateway."""

from gateway.backends import SERVICES
from gateway.setup import describe


def test_parameters_are_listed_over_http() -> None:
    operation = describe()["paths"]["/v1/parameters"]["get"]
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"surface", "objective"}
    assert "ParameterService" in {service.name for service in SERVICES["task"]}
