"""Calls of the SDK about data, templates, quotas, parameters and estimates: each its request and what it returns."""

from collections.abc import Sequence

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from tunesmith.client.exchange import Operation
from tunesmith.task.v1 import (
    dataset_service_pb2,
    parameter_service_pb2,
    quota_service_pb2,
    template_service_pb2,
)
from tunesmith.task.v1.dataset_service_pb2 import (
    Dataset,
    DeleteDatasetRequest,
    DeleteDatasetResponse,
    GetDatasetRequest,
    GetDatasetResponse,
    ListDatasetsRequest,
    ListDatasetsResponse,
)
from tunesmith.task.v1.parameter_service_pb2 import ListParametersRequest, ListParametersResponse, Parameter
from tunesmith.task.v1.quota_service_pb2 import (
    GetQuotaRequest,
    GetQuotaResponse,
    Quota,
    QuotaAction,
    SetQuotaRequest,
    SetQuotaResponse,
)
from tunesmith.task.v1.spec_pb2 import DatasetSource, FinetuneSpec
from tunesmith.task.v1.template_service_pb2 import (
    CreateTemplateRequest,
    CreateTemplateResponse,
    DeleteTemplateRequest,
    DeleteTemplateResponse,
    GetTemplateRequest,
    GetTemplateResponse,
    ListTemplatesRequest,
    ListTemplatesResponse,
    Template,
)
from tunesmith.trainer.v1 import trainer_service_pb2
from tunesmith.trainer.v1.trainer_service_pb2 import (
    EstimateResourcesRequest,
    EstimateResourcesResponse,
    ReportDatasetRequest,
    ReportDatasetResponse,
    ValidateDatasetRequest,
    ValidateDatasetResponse,
)


def _rpc(file: FileDescriptor, service: str, name: str) -> MethodDescriptor:
    return file.services_by_name[service].methods_by_name[name]


def _dataset_rpc(name: str) -> MethodDescriptor:
    return _rpc(dataset_service_pb2.DESCRIPTOR, "DatasetService", name)


def _template_rpc(name: str) -> MethodDescriptor:
    return _rpc(template_service_pb2.DESCRIPTOR, "TemplateService", name)


def _quota_rpc(name: str) -> MethodDescriptor:
    return _rpc(quota_service_pb2.DESCRIPTOR, "QuotaService", name)


def _trainer_rpc(name: str) -> MethodDescriptor:
    return _rpc(trainer_service_pb2.DESCRIPTOR, "TrainerService", name)


def get_dataset(dataset_id: str) -> Operation[GetDatasetResponse, Dataset]:
    """Returns one version of an uploaded dataset. Raises NotFound."""
    request = GetDatasetRequest(dataset_id=dataset_id)
    return Operation(_dataset_rpc("GetDataset"), request, GetDatasetResponse, lambda response: response.dataset)


def list_datasets(request: ListDatasetsRequest | None = None) -> Operation[ListDatasetsResponse, ListDatasetsResponse]:
    """Returns one page of the caller's uploaded datasets, newest first, with the token of the next."""
    whole = request or ListDatasetsRequest()
    return Operation(_dataset_rpc("ListDatasets"), whole, ListDatasetsResponse, lambda response: response)


def delete_dataset(dataset_id: str) -> Operation[DeleteDatasetResponse, None]:
    """Deletes an uploaded dataset. Raises FailedPrecondition while an unfinished task uses it."""
    request = DeleteDatasetRequest(dataset_id=dataset_id)
    return Operation(_dataset_rpc("DeleteDataset"), request, DeleteDatasetResponse, lambda _: None, repeatable=False)


def validate_dataset(source: DatasetSource) -> Operation[ValidateDatasetResponse, ValidateDatasetResponse]:
    """Returns every problem of a dataset, with line numbers."""
    request = ValidateDatasetRequest(dataset=source)
    return Operation(_trainer_rpc("ValidateDataset"), request, ValidateDatasetResponse, lambda response: response)


def report_dataset(request: ReportDatasetRequest) -> Operation[ReportDatasetResponse, ReportDatasetResponse]:
    """Returns a dataset's report: rows, duplicates, token lengths, what is masked, overlap of its splits."""
    return Operation(_trainer_rpc("ReportDataset"), request, ReportDatasetResponse, lambda response: response)


def get_template(template_id: str, *, version: int = 0) -> Operation[GetTemplateResponse, Template]:
    """Returns a template, in its newest version unless another is asked for. Raises NotFound."""
    request = GetTemplateRequest(template_id=template_id, version=version)
    return Operation(_template_rpc("GetTemplate"), request, GetTemplateResponse, lambda response: response.template)


def list_templates(
    request: ListTemplatesRequest | None = None,
) -> Operation[ListTemplatesResponse, ListTemplatesResponse]:
    """Returns one page of the platform's templates and the caller's own, with the token of the next."""
    whole = request or ListTemplatesRequest()
    return Operation(_template_rpc("ListTemplates"), whole, ListTemplatesResponse, lambda response: response)


def save_template(request: CreateTemplateRequest) -> Operation[CreateTemplateResponse, Template]:
    """Creates a template, or the next version of the caller's template of that name."""
    method = _template_rpc("CreateTemplate")
    return Operation(method, request, CreateTemplateResponse, lambda response: response.template, repeatable=False)


def delete_template(template_id: str) -> Operation[DeleteTemplateResponse, None]:
    """Deletes one of the caller's templates with all its versions."""
    request = DeleteTemplateRequest(template_id=template_id)
    return Operation(_template_rpc("DeleteTemplate"), request, DeleteTemplateResponse, lambda _: None, repeatable=False)


def quota(user: str = "") -> Operation[GetQuotaResponse, Quota]:
    """Returns the caller's allowance of checkpoints and its use; another user's for administrators."""
    request = GetQuotaRequest(user=user)
    return Operation(_quota_rpc("GetQuota"), request, GetQuotaResponse, lambda response: response.quota)


def set_quota(
    user: str,
    monthly_allowance: int,
    exhausted_action: QuotaAction.ValueType = quota_service_pb2.QUOTA_ACTION_UNSPECIFIED,
) -> Operation[SetQuotaResponse, Quota]:
    """For administrators: sets a user's monthly allowance, -1 for unlimited, and what happens when it is spent."""
    request = SetQuotaRequest(user=user, monthly_allowance=monthly_allowance, exhausted_action=exhausted_action)
    return Operation(_quota_rpc("SetQuota"), request, SetQuotaResponse, lambda response: response.quota)


def parameters(surface: str = "", objective: str = "") -> Operation[ListParametersResponse, Sequence[Parameter]]:
    """Returns every training parameter with the defaults and ranges of a surface."""
    method = _rpc(parameter_service_pb2.DESCRIPTOR, "ParameterService", "ListParameters")
    request = ListParametersRequest(surface=surface, objective=objective)
    return Operation(method, request, ListParametersResponse, lambda response: response.parameters)


def estimate(spec: FinetuneSpec) -> Operation[EstimateResourcesResponse, EstimateResourcesResponse]:
    """Returns what a training would need: memory, disk, checkpoints, time. Raises InvalidArgument."""
    request = EstimateResourcesRequest(spec=spec)
    return Operation(_trainer_rpc("EstimateResources"), request, EstimateResourcesResponse, lambda response: response)
