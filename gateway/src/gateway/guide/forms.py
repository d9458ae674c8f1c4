"""Multipart forms (RFC 7578), read as they come: fields in memory, files in the spool."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.guide.call import Call
from gateway.guide.spool import Spool
from gateway.http import BODY_TOO_LARGE, Request, receive_chunks
from servicekit.errors import InvalidArgument, Problem

MOST_PARTS = 200
LONGEST_FIELD = 64 * 1024
LONGEST_BOUNDARY = 70  # RFC 2046, section 5.1.1
CHUNK_BYTES = 1024 * 1024


@dataclass(slots=True)
class FormFile:
    """A file of a form; its name is what the caller says."""

    name: str
    file: IO[bytes]
    size: int = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes, a megabyte at a time."""
        await asyncio.to_thread(self.file.seek, 0)
        while chunk := await asyncio.to_thread(self.file.read, CHUNK_BYTES):
            yield chunk


@dataclass(slots=True)
class Form:
    """Fields and files by their names; a field that is there several times with different texts is a list of them."""

    fields: dict[str, str | list[str]] = field(default_factory=dict)
    files: dict[str, FormFile] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        """Adds a field."""
        known = self.fields.get(name, text)
        texts = [known] if isinstance(known, str) else known
        self.fields[name] = known if text in texts else [*texts, text]

    def text(self, name: str) -> str:
        """The text of a field, empty when it is not there. Raises InvalidArgument when there are several."""
        text = self.fields.get(name, "")
        if isinstance(text, list):
            raise InvalidArgument(problems=[Problem(name, f"one text was expected, not {len(text)}")])
        return text

    def file(self, name: str) -> FormFile:
        """The file with a name. Raises InvalidArgument when there is none, or when it is empty."""
        if name not in self.files:
            message = "a file was expected, not a text" if self.fields.get(name) else "must be given"
            raise InvalidArgument(problems=[Problem(name, message)])
        if not self.files[name].size:
            raise InvalidArgument(problems=[Problem(name, "the file is empty")])
        return self.files[name]


@asynccontextmanager
async def read_form(call: Call, file: str) -> AsyncIterator[Form]:
    """The form of a request, with a file in the field that file names; the file is gone at the end of the block.

    Raises InvalidArgument for what is no form, is too large or has another file, DeadlineExceeded when it comes too
    slowly, and ResourceExhausted when too many forms are there already or their disk is full.
    """
    settings = call.settings
    boundary = _boundary(call.http)
    with call.spool.place(call.user):
        await asyncio.to_thread(call.spool.require_space, _announced(call.http, settings.max_upload_bytes))
        reader = _Reader(boundary, call.spool, settings.max_upload_bytes, file)
        try:
            async for chunk in receive_chunks(call.http, settings.request_seconds):
                await reader.feed(chunk)
            yield reader.finish()
        finally:
            for opened in reader.opened:
                opened.close()


def _announced(request: Request, most: int) -> int:
    """How many bytes are to be expected, at most those that are taken; 0 when nothing is said of that."""
    length = request.headers.get(b"content-length", b"")
    return min(int(length), most) if length.isdigit() else 0


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.header(b"content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise InvalidArgument(problems=[Problem("", "the body must be multipart/form-data with a boundary")])
    return boundary


class _Reader:
    """What the parser finds is queued by its callbacks and worked on between two pieces of the body."""

    def __init__(self, boundary: bytes, spool: Spool, most_bytes: int, file_field: str) -> None:
        self._form = Form()
        self._spool = spool
        self._most = most_bytes
        self._file_field = file_field
        self._size = 0
        self.opened: list[IO[bytes]] = []
        self._todo: list[Callable[[], Awaitable[None]]] = []
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._parts = 0
        self._name = ""
        self._text: bytearray | None = None
        self._file: FormFile | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": lambda: self._todo.append(self._end),
                "on_end": self._on_end,
            },
        )

    async def feed(self, chunk: bytes) -> None:
        """Takes a piece of the body in. Raises InvalidArgument."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise InvalidArgument(problems=[Problem("", f"the form cannot be read: {error}")]) from None
        todo, self._todo = self._todo, []
        for step in todo:
            await step()

    def finish(self) -> Form:
        """The whole form. Raises InvalidArgument when the body ended before it."""
        if not self._ended:
            raise InvalidArgument(problems=[Problem("", "the form is cut off: its last boundary is missing")])
        return self._form

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidArgument(problems=[Problem("", f"the form has more than {MOST_PARTS} parts")])
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._todo.append(lambda: self._begin(options))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        self._todo.append(lambda: self._write(piece))

    def _on_end(self) -> None:
        self._ended = True

    async def _begin(self, options: Mapping[bytes, bytes]) -> None:
        self._name = options.get(b"name", b"").decode(errors="replace")
        if not self._name:
            raise InvalidArgument(problems=[Problem("", "a part of the form has no name")])
        if options.get(b"filename"):  # browsers leave it empty where no file was chosen
            self._require_one_file()
            file = await asyncio.to_thread(self._spool.open)
            self.opened.append(file)
            self._file = FormFile(options[b"filename"].decode(errors="replace"), file)
        else:
            self._text = bytearray()

    def _require_one_file(self) -> None:
        if self._name != self._file_field:
            message = f"no file is read from this field; one file was expected, in the field {self._file_field}"
        elif self._name in self._form.files:
            message = "one file was expected; pack several into a ZIP archive"
        else:
            return
        raise InvalidArgument(problems=[Problem(self._name, message)])

    async def _write(self, piece: bytes) -> None:
        if self._file is not None:
            self._file.size += len(piece)
            self._size += len(piece)
            if self._size > self._most:
                message = f"the form's files are larger than {self._most} bytes (TUNESMITH_MAX_UPLOAD_BYTES)"
                raise InvalidArgument(message, reason=BODY_TOO_LARGE)
            await asyncio.to_thread(self._spool.append, self._file.file, piece)
        elif self._text is not None:
            self._text += piece
            if len(self._text) > LONGEST_FIELD:
                raise InvalidArgument(problems=[Problem(self._name, f"takes up to {LONGEST_FIELD} bytes")])

    async def _end(self) -> None:
        if self._file is not None:
            self._form.files[self._name] = self._file
        elif self._text is not None:
            try:
                self._form.add(self._name, self._text.decode())
            except UnicodeDecodeError:
                raise InvalidArgument(problems=[Problem(self._name, "is not text in UTF-8")]) from None
        self._file = self._text = None
