"""RPCs with google.api.http annotations, compiled into what answering a request needs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from gateway.backends import SERVICES, Backends
from gateway.native.encode import Convert, message_encoder
from gateway.native.templates import Router, Template, parse

VERBS = ("get", "put", "post", "delete", "patch")
# RPCs that take a stream of a header and then bytes: over HTTP the query is the header and the body the bytes.
UPLOADS = {"tunesmith.task.v1.DatasetService.UploadDataset": "/v1/datasets"}
HEADER, DATA = "header", "data"


@dataclass(frozen=True, slots=True)
class Binding:
    """One HTTP form of an RPC. body is "*", the name of a field, or empty."""

    rpc: MethodDescriptor
    verb: str
    path: str
    template: Template
    body: str

    @property
    def input_type(self) -> Descriptor:
        """The message that a request is read into."""
        if not self.rpc.client_streaming:
            return self.rpc.input_type
        header = self.rpc.input_type.fields_by_name[HEADER].message_type
        assert header is not None
        return header


@dataclass(frozen=True, slots=True)
class Method:
    """A binding ready to be called. call takes a request with timeout and metadata, as a gRPC stub does.

    part is the message that an upload's stream is made of, None for every other RPC.
    """

    binding: Binding
    request: type[Message]
    encode: Convert
    call: Callable[..., Any]
    streaming: bool
    resumable: bool
    repeatable: bool
    part: type[Message] | None = None


def bindings(rpc: MethodDescriptor) -> Iterator[Binding]:
    """The HTTP forms of an RPC, none when it has no annotation and is no upload."""
    if rpc.full_name in UPLOADS:
        path = UPLOADS[rpc.full_name]
        yield Binding(rpc, "POST", path, parse(path), "")
    rule = rpc.GetOptions().Extensions[annotations_pb2.http]
    for form in (rule, *rule.additional_bindings):
        verb = form.WhichOneof("pattern")
        if verb in VERBS:
            path = getattr(form, verb)
            yield Binding(rpc, verb.upper(), path, parse(path), form.body)


def all_bindings() -> list[Binding]:
    """The HTTP forms of every RPC of every service."""
    return [
        binding
        for services in SERVICES.values()
        for service in services
        for rpc in service.methods
        for binding in bindings(rpc)
    ]


def build_router(backends: Backends) -> Router[Method]:
    """The routes of the native API."""
    router: Router[Method] = Router()
    for name, services in SERVICES.items():
        for service in services:
            for rpc in service.methods:
                for binding in bindings(rpc):
                    router.add(binding.verb, binding.template, _method(binding, backends.channels[name]))
    return router


def _method(binding: Binding, channel: grpc.aio.Channel) -> Method:
    rpc = binding.rpc
    request = message_factory.GetMessageClass(binding.input_type)
    response = message_factory.GetMessageClass(rpc.output_type)
    part = message_factory.GetMessageClass(rpc.input_type)
    open_call = channel.unary_stream if rpc.server_streaming else channel.unary_unary
    call = (channel.stream_unary if rpc.client_streaming else open_call)(
        f"/{rpc.containing_service.full_name}/{rpc.name}",
        request_serializer=part.SerializeToString,
        response_deserializer=response.FromString,
    )
    return Method(
        binding=binding,
        request=request,
        encode=message_encoder(rpc.output_type),
        call=call,
        streaming=rpc.server_streaming,
        resumable="cursor" in rpc.input_type.fields_by_name,
        repeatable="request_id" in rpc.input_type.fields_by_name,
        part=part if rpc.client_streaming else None,
    )
