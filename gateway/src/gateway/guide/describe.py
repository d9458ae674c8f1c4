"""The training guide's routes in the OpenAPI document: what both surfaces share."""

from typing import Any

from gateway.argument_schemas import argument_schemas
from gateway.guide.creation import MODALITIES, MODEL_TYPE, SIZES, names_of_modality
from gateway.guide.tasks import FILE, MOST_LISTED
from gateway.guide.views import STATUS_OF_STATE
from gateway.native.schemas import Schema
from parameterkit import BY_NAME, PARAMETERS

STATUS, STARTED, ERROR = "TrainingStatus", "TrainingStarted", "TrainingError"
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
_NULLABLE: Schema = {"type": ["string", "null"]}
_MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
_MAYBE_INTEGER: Schema = {"type": ["integer", "null"]}
_MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
_RESULT: dict[str, Schema] = {
    "success": {"type": "boolean"},
    "message": TEXT,
    "error": _NULLABLE,
    "task_id": TEXT,
}


def schemas() -> dict[str, Schema]:
    """The schemas that both surfaces use, by name."""
    status = {"type": "string", "enum": sorted(set(STATUS_OF_STATE.values()))}
    return {
        STATUS: {
            "type": "object",
            "properties": {
                **_RESULT,
                "status": status,
                "progress": {"type": "number", "minimum": 0, "maximum": 100},
                "current_epoch": INTEGER,
                "total_epochs": _MAYBE_INTEGER,
                "current_step": INTEGER,
                "total_steps": _MAYBE_INTEGER,
                "loss": _MAYBE_NUMBER,
                "learning_rate": _MAYBE_NUMBER,
                "metrics": {"type": "object", "additionalProperties": _MAYBE_NUMBER},
                "eta_seconds": _MAYBE_NUMBER,
                "started_at": _MAYBE_TIME,
                "completed_at": _MAYBE_TIME,
            },
        },
        STARTED: {"type": "object", "properties": {**_RESULT, "status": {"type": "string", "enum": ["pending"]}}},
        ERROR: {
            "type": "object",
            "required": ["detail"],
            "properties": {
                "detail": {
                    "description": "What is wrong; with 422 every field that is.",
                    "oneOf": [TEXT, {"type": "array", "items": _field_error()}],
                }
            },
        },
    }


def operation(name: str, summary: str, answer: Schema, tag: str, **more: Any) -> dict[str, Any]:
    """One route; more are further members of the operation."""
    return {
        "operationId": f"{tag.replace('-', '_')}_{name}",
        "tags": [tag],
        "summary": summary,
        "parameters": [],
        **more,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            "default": {"description": "An error.", "content": {"application/json": {"schema": reference(ERROR)}}},
        },
    }


def zipped(name: str, summary: str, tag: str, **more: Any) -> dict[str, Any]:
    """A route whose answer is a ZIP."""
    whole = operation(name, summary, TEXT, tag, **more)
    content = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
    return {**whole, "responses": {**whole["responses"], "200": {"description": "The file.", "content": content}}}


def request_schema(surface: str, modality: str = "") -> Schema:
    """A request to train on one of parameterkit's surfaces; of a kind of model, where the route does not say which."""
    names = set(names_of_modality(modality or "language_model"))
    rows = [row for row in PARAMETERS if row.name in names]
    properties = {"name": TEXT, "description": TEXT, **argument_schemas(rows, surface)}
    if modality in SIZES:
        properties[SIZES[modality]] = {**INTEGER, "description": "Side of the square images, in pixels."}
    required = ["base_model", *BY_NAME["train_file"].aliases[:1]]
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def any_request_schema(surface: str) -> Schema:
    """A request to train any kind of model, which it names."""
    schema = request_schema(surface)
    sizes = {name: {**INTEGER, "description": "Side of the square images, in pixels."} for name in SIZES.values()}
    kind: Schema = {"type": "string", "enum": list(MODALITIES)}
    return {
        **schema,
        "required": [MODEL_TYPE, *schema["required"]],
        "properties": {MODEL_TYPE: kind, **schema["properties"], **sizes},
    }


def json_body(schema: Schema) -> dict[str, Any]:
    """A request body in JSON."""
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def form_body(file: str, fields: dict[str, Schema], *required: str) -> dict[str, Any]:
    """A form with a file and fields, of which some must be given."""
    content: Schema = {"type": "string", "format": "binary"}
    schema: Schema = {"type": "object", "required": [file, *required], "properties": {**fields, file: content}}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def training_form(surface: str, modality: str = "") -> dict[str, Any]:
    """A form that starts a training with the data in it."""
    fields = request_schema(surface, modality)["properties"]
    own = {name: shape for name, shape in fields.items() if name not in BY_NAME[FILE].names}
    return form_body(FILE, own, "base_model")


def path_parameter(name: str) -> dict[str, Any]:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


def limit_parameter() -> dict[str, Any]:
    """How many of a list are wanted."""
    shape = {**INTEGER, "minimum": 1, "maximum": MOST_LISTED, "default": MOST_LISTED}
    return {"name": "limit", "in": "query", "schema": shape, "description": "The newest so many."}


def listed(item: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": item}


def record(**properties: Schema) -> Schema:
    """An object."""
    return {"type": "object", "properties": properties}


def reference(name: str) -> Schema:
    """A reference to a schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _field_error() -> Schema:
    return record(loc=listed(TEXT), msg=TEXT, type=TEXT)
