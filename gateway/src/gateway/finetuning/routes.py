"""The routes of the fine-tuning tasks document, under both of its prefixes."""

from collections.abc import Awaitable, Callable

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.backends import Backends
from gateway.finetuning import envelope
from gateway.finetuning.call import Call
from gateway.finetuning.create import caller_name
from gateway.finetuning.tasks import Answer, FinetuningTasks
from gateway.settings import GatewaySettings
from servicekit.errors import NotFound, Problem, TunesmithError, Unauthenticated, Unimplemented, from_rpc_error
from servicekit.identity import TokenVerifier

PREFIXES = ("/finetuning", "/api/finetuning")

Action = Callable[[Call], Awaitable[Answer]]


def finetuning_routes(backends: Backends, settings: GatewaySettings) -> list[BaseRoute]:
    """The surface under each of its prefixes."""
    tasks = FinetuningTasks(backends, settings)
    verifier = TokenVerifier(settings.public_key_file.read_bytes()) if settings.public_key_file else None
    table: list[tuple[str, str, str, Action]] = [
        ("POST", "/createTask", "创建任务", tasks.create_task),
        ("DELETE", "/deleteTask", "删除任务", tasks.delete_task),
        ("POST", "/stopTask", "停止任务", tasks.stop_task),
        ("GET", "/getTask", "获取任务", tasks.get_task),
        ("GET", "/getTaskList", "获取任务列表", tasks.list_tasks),
        ("GET", "/getTaskLog", "获取任务日志", tasks.read_log),
    ]
    routes = [Route(path, _endpoint(name, action, verifier), methods=[verb]) for verb, path, name, action in table]
    surface = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    return [Mount(prefix, surface) for prefix in PREFIXES]


def _endpoint(name: str, action: Action, verifier: TokenVerifier | None) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            call = Call(request)
            # The services check tokens too; here a bad one is told before anything else is.
            if verifier is not None:
                _, _, token = call.authorization.partition(" ")
                verifier.verify(token) if token else _no_token()
            data, message = await action(call)
        except TunesmithError as error:
            return envelope.failed(name, _renamed(error))
        except grpc.aio.AioRpcError as error:
            return envelope.failed(name, _renamed(from_rpc_error(error)))
        return envelope.succeeded(data, message)

    return endpoint


def _no_token() -> None:
    raise Unauthenticated("the request carries no token", reason="TOKEN_MISSING")


def _renamed(error: TunesmithError) -> TunesmithError:
    """The error with the caller's names for the fields of its problems."""
    problems = [Problem(caller_name(problem.field), problem.message) for problem in error.problems]
    return type(error)(error.message, reason=error.reason, problems=problems, metadata=error.metadata)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known: TunesmithError = Unimplemented() if error.status_code == 405 else NotFound()
    message = "请求方法不支持" if isinstance(known, Unimplemented) else "接口不存在"
    return envelope.answer(
        envelope.FAILED, {}, f"{message}: {request.method} {request.scope['path']}", error.status_code
    )
