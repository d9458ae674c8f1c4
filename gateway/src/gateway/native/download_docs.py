"""The files below /v1 in the OpenAPI document."""

from typing import Any

from gateway.native.downloads import ARTIFACT, REPORT, REPORTS
from gateway.native.schemas import Schema

_BINARY: Schema = {"type": "string", "format": "binary"}
_TEXT: Schema = {"type": "string"}
_ERROR = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_RANGE = [
    {"name": "Range", "in": "header", "schema": _TEXT, "description": "One range of bytes, for example bytes=1024-."},
    {
        "name": "If-Range",
        "in": "header",
        "schema": _TEXT,
        "description": "The ETag of the part that is there already; another file is sent from its start.",
    },
]


def paths() -> dict[str, Any]:
    """The routes."""
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    report = {**name, "schema": {"type": "string", "enum": list(REPORTS)}}
    whole = {"description": "The file.", "content": {"application/octet-stream": {"schema": _BINARY}}}
    partial = {**whole, "description": "The range that was asked for."}
    missing = {"description": "There is no such range; Content-Range tells the size."}
    kinds = {kind.partition(";")[0]: {"schema": _TEXT} for kind in REPORTS.values()}
    return {
        ARTIFACT.replace("=**", ""): _operations(
            "ExportService",
            "DownloadArtifact",
            "A file that an export made; its ETag is the SHA-256",
            [name, *_RANGE],
            {"200": whole, "206": partial, "416": missing},
        ),
        REPORT: _operations(
            "EvalService",
            "DownloadReport",
            "A file of an evaluation's report",
            [report],
            {"200": {"description": "The file.", "content": kinds}},
        ),
    }


def _operations(
    service: str, rpc: str, summary: str, parameters: list[dict[str, Any]], responses: dict[str, Any]
) -> dict[str, Any]:
    task = {"name": "task_id", "in": "path", "required": True, "schema": _TEXT}
    operation = {
        "operationId": f"{service}_{rpc}",
        "tags": [service],
        "summary": summary,
        "parameters": [task, *parameters],
        "responses": {**responses, "default": _ERROR},
    }
    head = {**operation, "operationId": f"{service}_{rpc}_head", "summary": f"Size and kind of: {summary}"}
    return {"get": operation, "head": {**head, "responses": {"200": {"description": "There is such a file."}}}}
