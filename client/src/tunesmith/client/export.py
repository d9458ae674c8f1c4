"""Exports: requests from plain values, and the calls about them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from google.protobuf.descriptor import MethodDescriptor

from tunesmith.client.errors import InvalidArgument, NotFound, Problem
from tunesmith.client.exchange import Operation
from tunesmith.client.finetune import dataset_source
from tunesmith.export.v1 import export_service_pb2
from tunesmith.export.v1.export_service_pb2 import (
    Artifact,
    Export,
    Format,
    GetExportRequest,
    GetExportResponse,
    ListExportsRequest,
    ListExportsResponse,
    ListFormatsRequest,
    ListFormatsResponse,
    PackageTemplate,
)
from tunesmith.task.v1 import spec_pb2, task_pb2
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

FORMATS = {
    "adapter": spec_pb2.EXPORT_FORMAT_ADAPTER,
    "merged": spec_pb2.EXPORT_FORMAT_MERGED,
    "gguf": spec_pb2.EXPORT_FORMAT_GGUF,
    "gguf-adapter": spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER,
    "gguf-base": spec_pb2.EXPORT_FORMAT_GGUF_BASE,
}
_SERVICE = export_service_pb2.DESCRIPTOR.services_by_name["ExportService"]


def export_request(
    name: str,
    task_id: str,
    form: str,
    quantizations: Iterable[str] = (),
    *,
    checkpoint_step: int = 0,
    output_dir: str = "",
    modelfile: bool | None = None,
    importance_dataset: str = "",
) -> CreateTaskRequest:
    """The request for packaging a checkpoint of a task, the final model unless a step is named.

    form is one of FORMATS; quantizations are GGUF types such as "Q4_K_M". Raises InvalidArgument for another form.
    """
    if form not in FORMATS:
        text = f"takes {', '.join(FORMATS)}; not {form!r}"
        raise InvalidArgument(f"format: {text}", problems=[Problem("format", text)])
    request = CreateTaskRequest(name=name)
    spec = request.spec.export
    spec.source_task_id, spec.checkpoint_step, spec.format = task_id, checkpoint_step, FORMATS[form]
    spec.quantizations.extend(quantizations)
    spec.output_dir = str(Path(output_dir).expanduser().absolute()) if output_dir else ""
    if modelfile is not None:
        spec.modelfile = modelfile
    if importance_dataset:
        spec.importance_dataset.CopyFrom(dataset_source(importance_dataset))
    return request


def get_export(task_id: str) -> Operation[GetExportResponse, Export]:
    """Returns an export with its files and the checks that they passed. Raises NotFound."""
    request = GetExportRequest(task_id=task_id)
    return Operation(_rpc("GetExport"), request, GetExportResponse, lambda response: response.export)


def list_exports(request: ListExportsRequest | None = None) -> Operation[ListExportsResponse, ListExportsResponse]:
    """Returns one page of the caller's exports, newest first, with the token of the next."""
    whole = request or ListExportsRequest()
    return Operation(_rpc("ListExports"), whole, ListExportsResponse, lambda response: response)


def list_formats() -> Operation[ListFormatsResponse, Sequence[Format]]:
    """Returns the forms and GGUF types that a model can be exported to."""
    method = _rpc("ListFormats")
    return Operation(method, ListFormatsRequest(), ListFormatsResponse, lambda response: response.formats)


def list_templates() -> Operation[ListFormatsResponse, Sequence[PackageTemplate]]:
    """Returns the usual packages: each a form and its GGUF types to start from."""
    method = _rpc("ListFormats")
    return Operation(method, ListFormatsRequest(), ListFormatsResponse, lambda response: response.templates)


def artifact_path(task_id: str, name: str) -> str:
    """Where a file of an export is."""
    return f"/v1/exports/{quote(task_id, safe='')}/artifacts/{quote(name)}"


def named(export: Export, name: str) -> Artifact:
    """A file of an export; the only one when no name is given. Raises NotFound, which says what there is."""
    found = [item for item in export.artifacts if item.name == name or not name]
    if len(found) == 1:
        return found[0]
    names = ", ".join(item.name for item in export.artifacts)
    if not names:
        state = task_pb2.State.Name(export.state).removeprefix("STATE_").lower()
        raise NotFound(f"export {export.task_id} is {state}; its files are there once it is completed")
    raise NotFound(f"export {export.task_id} has {'no file ' + name if name else 'not one file'}; there are {names}")


def _rpc(name: str) -> MethodDescriptor:
    return _SERVICE.methods_by_name[name]
