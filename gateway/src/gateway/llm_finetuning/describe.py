"""This surface in the OpenAPI document."""

from functools import partial
from typing import Any

from gateway.guide import describe
from gateway.guide.describe import INTEGER, STARTED, STATUS, TEXT, record, reference
from gateway.llm_finetuning.routes import LORA, MOST_TOKENS, PREFIX, QLORA
from gateway.native.schemas import Schema

TAG = "llm-finetuning"
REQUESTS = {LORA: "LoRARequest", QLORA: "QLoRARequest"}
_operation = partial(describe.operation, tag=TAG)


def schemas() -> dict[str, Schema]:
    """The schemas of the surface, by name."""
    return {name: describe.request_schema(surface) for surface, name in REQUESTS.items()}


def paths() -> dict[str, Any]:
    """The routes."""
    task = [describe.path_parameter("task_id")]
    many = [describe.limit_parameter()]
    status = reference(STATUS)
    model = record(id=TEXT, name=TEXT, parameters=TEXT, description=TEXT)
    adapter = record(path=TEXT, name=TEXT, task_id=TEXT, config={"type": "object"})
    merge = describe.json_body(record(task_id=TEXT, output_path=TEXT))
    tokens: Schema = {**INTEGER, "minimum": 1, "maximum": MOST_TOKENS}
    test = describe.json_body(record(task_id=TEXT, prompt=TEXT, max_tokens=tokens))
    uploaded = record(path={**TEXT, "description": "What dataset_path takes."}, samples=INTEGER)
    file = describe.form_body("file", {})
    routes = {
        "/lora/start": _start("lora_start", "Start a LoRA training", LORA),
        "/qlora/start": _start("qlora_start", "Start a QLoRA training", QLORA),
        "/lora": _form("lora", "Upload data and start a LoRA training", LORA),
        "/qlora": _form("qlora", "Upload data and start a QLoRA training", QLORA),
        "/status/{task_id}": {"get": _operation("status", "Status of a task", status, parameters=task)},
        "/stop/{task_id}": {"post": _operation("stop", "Stop a task", status, parameters=task)},
        "/tasks": {"get": _operation("tasks", "Tasks that have not ended", describe.listed(status), parameters=many)},
        "/models": {"get": _operation("models", "Base models", describe.listed(model))},
        "/data/upload": {"post": _operation("upload", "Upload training data", uploaded, requestBody=file)},
        "/adapters": {
            "get": _operation(
                "adapters", "Adapters of completed tasks", record(adapters=describe.listed(adapter)), parameters=many
            )
        },
        "/merge": {
            "post": _operation(
                "merge", "Merge an adapter into its base", record(success={"type": "boolean"}, path=TEXT)
            )
            | {"requestBody": merge}
        },
        "/test": {"post": _operation("test", "Ask a trained model", record(response=TEXT), requestBody=test)},
        "/export/{task_id}": {"get": describe.zipped("export", "The adapter as a ZIP", TAG, parameters=task)},
    }
    return {PREFIX + path: operations for path, operations in routes.items()}


def _start(name: str, summary: str, surface: str) -> dict[str, Any]:
    body = describe.json_body(reference(REQUESTS[surface]))
    return {"post": _operation(name, summary, record(task_id=TEXT), requestBody=body)}


def _form(name: str, summary: str, surface: str) -> dict[str, Any]:
    body = describe.training_form(surface)
    return {"post": _operation(name, summary, reference(STARTED), requestBody=body)}
