"""Path templates of google.api.http."""

import pytest

from gateway.native.methods import all_bindings
from gateway.native.templates import Router, Variable, parse


def test_parse() -> None:
    template = parse("/v1/{name=shelves/*/books/**}:read")
    assert template.segments == ("v1", "shelves", "*", "books", "**")
    assert template.variables == (Variable("name", 1, None),)
    assert template.verb == "read"
    assert parse("/v1/tasks/{task.id}/log:tail").variables == (Variable("task.id", 2, 3),)


@pytest.mark.parametrize("text", ["v1/tasks", "/v1//x", "/v1/{a", "/v1/**/x", "/v1/a{b}"])
def test_bad_templates(text: str) -> None:
    with pytest.raises(ValueError, match="v1"):
        parse(text)


def found(router: Router[str], path: str) -> tuple[str, list[str]]:
    methods, segments = router.find(path)
    return methods.get("GET", ""), segments


def test_find() -> None:
    router: Router[str] = Router()
    for path in ("/v1/t", "/v1/t/{id}", "/v1/t/{id}:go", "/v1/t/special", "/v1/t/{id}/log", "/v1/f/{p=**}", "/v1/t:go"):
        router.add("GET", parse(path), path)
    assert found(router, "/v1/t")[0] == "/v1/t"
    assert found(router, "/v1/t:go")[0] == "/v1/t:go"
    assert found(router, "/v1/t/5") == ("/v1/t/{id}", ["v1", "t", "5"])
    assert found(router, "/v1/t/5:go") == ("/v1/t/{id}:go", ["v1", "t", "5"])
    assert found(router, "/v1/t/5:6") == ("/v1/t/{id}", ["v1", "t", "5:6"])
    assert found(router, "/v1/t/special")[0] == "/v1/t/special"
    assert found(router, "/v1/t/special/log")[0] == "/v1/t/{id}/log", "a literal that leads nowhere is taken back"
    assert found(router, "/v1/f/a/b%2Fc") == ("/v1/f/{p=**}", ["v1", "f", "a", "b/c"])
    for path in ("/v1", "/v1/t/", "/v1/t/5/", "/v1/t/5/log/x", "/", "", "/v2/t"):
        assert found(router, path)[0] == ""
    with pytest.raises(ValueError, match="two routes"):
        router.add("GET", parse("/v1/t/{other}"), "again")


def test_every_annotation_is_bound() -> None:
    names = {f"{binding.verb} {binding.path}" for binding in all_bindings()}
    assert {"GET /v1/tasks/{task_id}:watch", "POST /v1/generate", "GET /v1/export-formats", "GET /v1/devices"} <= names
