"""This surface in the OpenAPI document."""

from typing import Any

from gateway.argument_schemas import argument_schemas
from gateway.finetuning.arguments import ARGUMENTS, DEVICE_ARGUMENTS, SURFACE
from gateway.finetuning.views import STATUS_OF_STATE
from gateway.native.schemas import Schema

TAG = "finetuning"
_STATUSES = sorted(set(STATUS_OF_STATE.values()))
_TOKEN = {
    "name": "x-token",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The token; Authorization: Bearer is taken too.",
}
_ID = {"name": "id", "in": "query", "required": True, "schema": {"type": "integer", "minimum": 1}}
_TEXT: Schema = {"type": "string"}
_NULLABLE: Schema = {"type": ["string", "null"]}
_INTEGER: Schema = {"type": "integer"}
_JSON_TEXT: Schema = {"type": ["string", "null"], "description": "JSON in a string."}
_UNIX: Schema = {"type": ["integer", "null"], "description": "Unix seconds."}

_TASK: Schema = {
    "type": "object",
    "properties": {
        "ID": _INTEGER,
        "CreatedAt": {"type": "string", "format": "date-time"},
        "UpdatedAt": {"type": "string", "format": "date-time"},
        "name": _TEXT,
        "description": _NULLABLE,
        "userID": {"type": ["integer", "null"]},
        "status": {"type": "string", "enum": _STATUSES},
        "progress": {"type": "number", "minimum": 0, "maximum": 100},
        "baseModel": _TEXT,
        "datasetPath": _TEXT,
        "outputPath": _NULLABLE,
        "trainingArgs": _JSON_TEXT,
        "gpuConfig": _JSON_TEXT,
        "command": {**_NULLABLE, "description": "The command that would start the task again."},
        "logPath": _NULLABLE,
        "errorMessage": _NULLABLE,
        "startedAt": _UNIX,
        "finishedAt": _UNIX,
        "pid": {"type": ["integer", "null"]},
        "metrics": _JSON_TEXT,
    },
}
_TASK_REFERENCE = {"$ref": "#/components/schemas/FinetuningTask"}
_PAGE: Schema = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": _TASK_REFERENCE},
        "total": _INTEGER,
        "page": _INTEGER,
        "pageSize": _INTEGER,
    },
}


def schemas() -> dict[str, Schema]:
    """The schemas of the surface, by name."""
    return {"FinetuningTask": _TASK, "FinetuningCreate": _create()}


def paths() -> dict[str, Any]:
    """The six routes; each is served below /api too."""
    create = {"required": True, "content": {"application/json": {"schema": _reference("FinetuningCreate")}}}
    created: Schema = {"type": "object", "properties": {"ID": _INTEGER}}
    return {
        "/finetuning/createTask": {"post": _operation("createTask", "创建微调任务", created, requestBody=create)},
        "/finetuning/deleteTask": {"delete": _operation("deleteTask", "删除微调任务", {"type": "object"}, _ID)},
        "/finetuning/stopTask": {"post": _operation("stopTask", "停止微调任务", {"type": "object"}, _ID)},
        "/finetuning/getTask": {"get": _operation("getTask", "获取任务详情", _TASK_REFERENCE, _ID)},
        "/finetuning/getTaskList": {"get": _operation("getTaskList", "获取任务列表", _PAGE, *_list_parameters())},
        "/finetuning/getTaskLog": {"get": _operation("getTaskLog", "获取任务日志", _TEXT, _ID, *_log_parameters())},
    }


def _operation(name: str, summary: str, data: Schema, *parameters: Any, **more: Any) -> dict[str, Any]:
    envelope: Schema = {
        "type": "object",
        "required": ["code", "data", "msg"],
        "properties": {"code": {"type": "integer", "enum": [0, 7]}, "data": data, "msg": _TEXT},
    }
    content = {"application/json": {"schema": envelope}}
    return {
        "operationId": f"finetuning_{name}",
        "tags": [TAG],
        "summary": summary,
        "description": f"Also at /api/finetuning/{name}. Failures are answered with 200 and code 7.",
        "parameters": [*parameters, _TOKEN],
        **more,
        "responses": {
            "200": {"description": "code 0: done; code 7: msg says why not.", "content": content},
            "401": {"description": "The token is missing, bad or expired.", "content": content},
        },
    }


def _list_parameters() -> list[dict[str, Any]]:
    shapes: dict[str, Schema] = {
        "page": {"type": "integer", "minimum": 1, "default": 1},
        "pageSize": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
        "keyword": {**_TEXT, "description": "Contained in name or description."},
        "name": {**_TEXT, "description": "Contained in the name."},
        "status": {"type": "string", "enum": _STATUSES},
        "baseModel": {**_TEXT, "description": "Contained in the base model."},
        "orderKey": {"type": "string", "enum": ["created_at", "updated_at", "name", "started_at", "id"]},
        "desc": {"type": "boolean", "description": "Descending; the default when there is no orderKey."},
    }
    return [{"name": name, "in": "query", "schema": shape} for name, shape in shapes.items()]


def _log_parameters() -> list[dict[str, Any]]:
    shape: Schema = {"type": "integer", "minimum": 0, "default": 0}
    return [
        {"name": "lines", "in": "query", "schema": {**shape, "description": "The last so many lines; 0 is all."}},
        {"name": "offset", "in": "query", "schema": {**shape, "description": "Skip so many lines from the start."}},
    ]


def _create() -> Schema:
    arguments, devices = argument_schemas(ARGUMENTS, SURFACE), argument_schemas(DEVICE_ARGUMENTS, SURFACE)
    return {
        "type": "object",
        "required": ["name", "baseModel", "datasetPath"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 200},
            "description": _TEXT,
            "baseModel": {"type": "string", "description": "A directory, or an id such as THUDM/chatglm3-6b."},
            "datasetPath": {"type": "string", "description": "A directory with train.jsonl, a file, an id or an URI."},
            "outputPath": {"type": "string", "description": "Directory that receives the model."},
            "trainingArgs": {"type": "object", "additionalProperties": False, "properties": arguments},
            "gpuConfig": {"type": "object", "additionalProperties": False, "properties": devices},
            "command": {"type": "string", "description": "Refused unless the deployment takes commands."},
        },
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
