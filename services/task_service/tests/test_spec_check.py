"""Each kind of work is checked by the service that does it, over real gRPC."""

from typing import Any

import pytest

from servicekit.errors import Problem, Unimplemented
from servicekit.grpc_client import open_channel
from servicekit.grpc_server import Servicer, running_server
from servicekit.settings import ServiceSettings
from services.task_service.tests.harness import language_model_spec
from task_service.spec_check import SpecCheckers, evaluation_checker, export_checker, trainer_checker
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc
from tunesmith.task.v1 import spec_pb2, task_service_pb2


class Evaluations(eval_service_pb2_grpc.EvalServiceServicer):
    async def CheckSpec(self, request: Any, context: Any) -> Any:
        text = f"{request.spec.source_task_id} {request.source.task_id}"
        problem = eval_service_pb2.SpecProblem(field="evaluate.scores[0]", message=text)
        return eval_service_pb2.CheckSpecResponse(problems=[problem])


class Exports(export_service_pb2_grpc.ExportServiceServicer):
    async def CheckSpec(self, request: Any, context: Any) -> Any:
        text = f"{request.spec.source_task_id} {request.source.task_id}"
        problem = export_service_pb2.SpecProblem(field="export.format", message=text)
        return export_service_pb2.CheckSpecResponse(problems=[problem])


SERVICERS: list[Servicer] = [
    (eval_service_pb2_grpc.add_EvalServiceServicer_to_server, Evaluations(), "tunesmith.eval.v1.EvalService"),
    (export_service_pb2_grpc.add_ExportServiceServicer_to_server, Exports(), "tunesmith.export.v1.ExportService"),
]


async def test_every_kind_has_its_own_checker() -> None:
    source = task_service_pb2.TaskSource(task_id="s")
    settings = ServiceSettings(port=0, drain_seconds=0)
    async with running_server(settings, SERVICERS) as server:
        channel = open_channel(f"127.0.0.1:{server.port}")
        make = {"finetune": trainer_checker, "evaluate": evaluation_checker, "export": export_checker}
        checkers = SpecCheckers({kind: checker(channel, 5.0) for kind, checker in make.items()})
        evaluate = spec_pb2.TaskSpec(evaluate=spec_pb2.EvaluateSpec(source_task_id="s"))
        assert await checkers.problems(evaluate, source, None) == [Problem("spec.evaluate.scores[0]", "s s")]
        export = spec_pb2.TaskSpec(export=spec_pb2.ExportSpec(source_task_id="s", format=spec_pb2.EXPORT_FORMAT_MERGED))
        assert await checkers.problems(export, source, None) == [Problem("spec.export.format", "s s")]
        with pytest.raises(Unimplemented):
            await checkers.problems(language_model_spec(), None, None)
        assert await SpecCheckers({}).problems(export, source, None) == []
        await channel.close()
