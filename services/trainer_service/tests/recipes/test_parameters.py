"""Recipes and the platform's parameter table agree: the same defaults, optimisers and schedules (C17, C18)."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from parameterkit import BY_NAME, PARAMETERS, defaults, rules
from parameterkit.values import assign
from trainer_service.recipes.config import Finetune
from trainer_service.recipes.support import OPTIMIZERS, SCHEDULERS
from tunesmith.task.v1 import spec_pb2

DEFAULTS = [(BY_NAME[name], value) for name, value in defaults().items()]
LEFT_TO_OTHERS = set(rules.DERIVED)


def recipe_value(config: Finetune, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value.lower() if isinstance(value, str) and value.isupper() else value


@pytest.mark.parametrize(("row", "value"), DEFAULTS, ids=[row.name for row, _ in DEFAULTS])
def test_a_recipe_left_alone_uses_the_platforms_default(row: Any, value: Any) -> None:
    config = Finetune.parse({"base_model": "m", "language_model": {}})
    assert recipe_value(config, row.path) == value


def test_a_recipe_reads_every_parameter_that_the_platform_fills_in() -> None:
    spec = spec_pb2.FinetuneSpec(base_model="m")
    for row, value in DEFAULTS:
        assign(spec, row, value)
    filled = Finetune.parse(MessageToDict(spec, preserving_proto_field_name=True))
    for row, value in DEFAULTS:
        assert recipe_value(filled, row.path) == value, row.name


def test_every_parameter_of_training_and_model_is_one_of_the_recipes() -> None:
    config = Finetune.parse({"base_model": "m", "language_model": {}})
    for row in PARAMETERS:
        if not row.switch and row.path.startswith(("training.", "language_model.")):
            recipe_value(config, row.path)


def test_the_table_offers_what_recipes_can_do() -> None:
    optim = BY_NAME["optim"]
    assert set(optim.choices) <= set(OPTIMIZERS) <= {*optim.choices, *optim.words}
    assert set(BY_NAME["lr_scheduler_type"].choices) == set(SCHEDULERS)
