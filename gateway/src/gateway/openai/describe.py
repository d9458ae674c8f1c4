"""This surface in the OpenAPI document."""

from typing import Any

from gateway.native.schemas import Schema
from gateway.openai.requests import MAX_TOKENS, MOST_STOPS
from gateway.openai.routes import PREFIX

TAG = "openai"
ERROR, MODEL, REQUEST, COMPLETION = "OpenAIError", "OpenAIModel", "ChatCompletionRequest", "ChatCompletion"
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
OBJECT: Schema = {"type": "object"}


def schemas() -> dict[str, Schema]:
    """The schemas of the surface, by name."""
    error = {"type": "object", "properties": dict.fromkeys(("message", "type", "param", "code"), TEXT)}
    model = {"id": TEXT, "object": TEXT, "created": INTEGER, "owned_by": TEXT, "name": TEXT}
    answer = {
        "id": TEXT,
        "object": TEXT,
        "created": INTEGER,
        "model": TEXT,
        "choices": {"type": "array", "items": OBJECT},
    }
    return {
        ERROR: {"type": "object", "required": ["error"], "properties": {"error": error}},
        MODEL: {"type": "object", "properties": model},
        REQUEST: _request(),
        COMPLETION: {"type": "object", "properties": {**answer, "usage": OBJECT}},
    }


def paths() -> dict[str, Any]:
    """The routes."""
    listed = {"type": "object", "properties": {"object": TEXT, "data": {"type": "array", "items": _reference(MODEL)}}}
    name = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    complete = _operation("complete", "Continue a conversation", _reference(COMPLETION))
    body = {"required": True, "content": {"application/json": {"schema": _reference(REQUEST)}}}
    complete["responses"]["200"]["content"]["text/event-stream"] = {"schema": OBJECT}
    return {
        f"{PREFIX}/models": {"get": _operation("models", "List models", listed)},
        f"{PREFIX}/models/{{name}}": {
            "get": {**_operation("model", "A model", _reference(MODEL)), "parameters": [name]}
        },
        f"{PREFIX}/chat/completions": {"post": {**complete, "requestBody": body}},
    }


def _request() -> Schema:
    def number(default: float, least: float, most: float) -> Schema:
        return {"type": "number", "default": default, "minimum": least, "maximum": most}

    message = {"type": "object", "required": ["role", "content"], "properties": {"role": TEXT, "content": {}}}
    tokens = {**INTEGER, "minimum": 1, "default": MAX_TOKENS}
    stop = {"oneOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": MOST_STOPS}]}
    options = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
    return {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {**TEXT, "description": "TASK, TASK:checkpoint-STEP, TASK:base, or EXPORT:FILE.gguf."},
            "messages": {"type": "array", "items": message, "minItems": 1},
            "temperature": number(1, 0, 2),
            "top_p": number(1, 0, 1),
            "presence_penalty": number(0, -2, 2),
            "max_tokens": tokens,
            "max_completion_tokens": tokens,
            "stop": stop,
            "seed": {**INTEGER, "description": "Without one each answer has another."},
            "stream": {"type": "boolean", "default": False},
            "stream_options": options,
            "top_k": {**INTEGER, "default": 0, "description": "An addition to OpenAI's; 0 means all."},
            "min_p": number(0, 0, 1),
            "repetition_penalty": number(1, 0, 2),
        },
    }


def _operation(name: str, summary: str, schema: Schema) -> dict[str, Any]:
    return {
        "operationId": f"{TAG}_{name}",
        "tags": [TAG],
        "summary": summary,
        "parameters": [],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "An error.", "content": {"application/json": {"schema": _reference(ERROR)}}},
        },
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
