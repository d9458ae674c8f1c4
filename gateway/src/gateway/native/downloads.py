"""Files below /v1: the artifacts of exports, whole or in ranges, and the reports of evaluations."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.backends import Backends
from gateway.calls import call_metadata
from gateway.download import Download, Source, attachment
from gateway.http import METHOD_NOT_ALLOWED, RANGE_NOT_SATISFIABLE, Request, Send
from gateway.native import ranges
from gateway.native.errors import send_error
from gateway.native.templates import Router, parse
from servicekit.errors import InvalidArgument, NotFound, Unimplemented
from tunesmith.eval.v1 import eval_service_pb2, eval_service_pb2_grpc
from tunesmith.export.v1 import export_service_pb2, export_service_pb2_grpc

# An artifact may lie in a folder: its name then has slashes.
ARTIFACT = "/v1/exports/{task_id}/artifacts/{name=**}"
REPORT = "/v1/evaluations/{task_id}/report/{name}"
REPORTS = {
    "report.json": "application/json",
    "report.csv": "text/csv; charset=utf-8",
    "report.html": "text/html; charset=utf-8",
    "samples.csv": "text/csv; charset=utf-8",
}
# A report shows what models said: it may draw, and do nothing else.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
_VERBS = ("GET", "HEAD")
_OCTETS = "application/octet-stream"
_KINDS = {".zip": "application/zip", ".json": "application/json"}

Action = Callable[[Request, Send, str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    action: Action


class Downloads:
    """Answers GET and HEAD of files."""

    def __init__(self, backends: Backends, seconds: float) -> None:
        self._exports = export_service_pb2_grpc.ExportServiceStub(backends.channels["export"])
        self._evaluations = eval_service_pb2_grpc.EvalServiceStub(backends.channels["eval"])
        self._seconds = seconds
        self._router: Router[_Route] = Router()
        for path, action in ((ARTIFACT, self._artifact), (REPORT, self._report)):
            self._router.add("GET", parse(path), _Route(path, action))

    async def serve(self, request: Request, send: Send) -> bool:
        """Answers a request for a file; False for anything else."""
        found, segments = self._router.find(request.path)
        if not found:
            return False
        route = found["GET"]
        request.route = route.path
        if request.method not in _VERBS:
            error = Unimplemented(f"{request.path} takes GET, HEAD, not {request.method}", reason=METHOD_NOT_ALLOWED)
            await send_error(send, error, ((b"allow", b"GET, HEAD"),))
        else:
            await route.action(request, send, segments[2], "/".join(segments[4:]))
        return True

    async def _artifact(self, request: Request, send: Send, task_id: str, name: str) -> None:
        metadata = call_metadata(request)
        asked = export_service_pb2.GetExportRequest(task_id=task_id)
        response = await self._exports.GetExport(asked, timeout=self._seconds, metadata=metadata)
        artifact = _named(response.export, name)
        etag = f'"{artifact.sha256}"'
        part = ranges.wanted(request.header(b"range"), request.header(b"if-range"), etag, artifact.size)
        headers = {"accept-ranges": "bytes", "etag": etag}
        if part is None:
            text = f"{name} has {artifact.size} bytes; nothing of it is in the range {request.header(b'range')}"
            size = (b"content-range", b"bytes */%d" % artifact.size)
            await send_error(send, InvalidArgument(text, reason=RANGE_NOT_SATISFIABLE), (size,))
            return
        headers |= {"content-type": _kind(name), "content-disposition": attachment(name.rpartition("/")[2])}
        if part.partial:
            last = part.start + part.length - 1
            headers["content-range"] = f"bytes {part.start}-{last}/{artifact.size}"
        status = 206 if part.partial else 200
        if request.method == "HEAD" or part.length == 0:
            await _send_head(send, status, headers, part.length)
            return
        wish = export_service_pb2.DownloadArtifactRequest(task_id=task_id, name=name, offset=part.start)
        source = await Source.open(self._exports.DownloadArtifact(wish, metadata=metadata), self._seconds)
        to_end = part.start + part.length == artifact.size
        answer = Download(source, headers, status=status, length=part.length, to_end=to_end)
        await answer(request.scope, request.receive, send)

    async def _report(self, request: Request, send: Send, task_id: str, name: str) -> None:
        if name not in REPORTS:
            raise NotFound(f"there is no report {name!r}; there are {', '.join(REPORTS)}", reason="REPORT_NOT_FOUND")
        wish = eval_service_pb2.DownloadReportRequest(task_id=task_id, name=name)
        call: Any = self._evaluations.DownloadReport(wish, metadata=call_metadata(request))
        source = await Source.open(call, self._seconds)
        size = source.first.total_size if source.first is not None else 0
        headers = {"content-type": REPORTS[name], "content-disposition": attachment(name, inline=name.endswith("html"))}
        if name.endswith("html"):
            headers["content-security-policy"] = REPORT_POLICY
        if request.method == "HEAD" or size == 0:
            call.cancel()
            await _send_head(send, 200, headers, size)
            return
        await Download(source, headers, length=size)(request.scope, request.receive, send)


async def _send_head(send: Send, status: int, headers: dict[str, str], length: int) -> None:
    """An answer without a body; length is that of the body that GET would have."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    start = [*raw, (b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": b""})


def _named(export: export_service_pb2.Export, name: str) -> export_service_pb2.Artifact:
    """The artifact of an export. Raises NotFound, which says what there is."""
    for artifact in export.artifacts:
        if artifact.name == name:
            return artifact
    names = ", ".join(artifact.name for artifact in export.artifacts)
    there_is = f"there are {names}" if names else "its files are there once it is completed"
    raise NotFound(f"export {export.task_id} has no file {name!r}; {there_is}", reason="ARTIFACT_NOT_FOUND")


def _kind(name: str) -> str:
    return _KINDS.get("." + name.rpartition(".")[2].lower(), _OCTETS)
