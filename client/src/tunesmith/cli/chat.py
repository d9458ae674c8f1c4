"""What `tunesmith chat` does: several turns on a terminal, or one answer for scripts."""

import json as json_module
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing

from google.protobuf.json_format import MessageToDict

from tunesmith.cli import text
from tunesmith.cli.commands import Session
from tunesmith.cli.failures import UsageProblem
from tunesmith.cli.wish import checked, named_settings
from tunesmith.client import ApiError, generation_request
from tunesmith.eval.v1.eval_service_pb2 import GenerateRequest, GenerateResponse, Message

QUESTION = "> "
HELP = "Ctrl-D ends, Ctrl-C stops an answer, /reset forgets what was said"
RESET, EXIT = "/reset", ("/exit", "/quit")


class ChatSession(Session):
    """A session with one model; begin comes first."""

    _request: GenerateRequest
    _loading = ""

    def begin(
        self, task_id: str, checkpoint: int, settings: list[str], *, base: bool, artifact: str, system: str
    ) -> None:
        """Chooses the model and how it answers. Raises UsageProblem with every mistake."""
        problems: list[str] = []
        parameters = named_settings(settings, problems)
        self._request = checked(
            problems,
            lambda: generation_request(
                task_id,
                [],
                parameters,
                checkpoint_step=checkpoint,
                base_model=base,
                artifact=artifact,
                system=system,
            ),
        )

    def ask_once(self, prompt: str, compare: Iterable[int]) -> None:
        """Prints the answer to one prompt, and those of other checkpoints below headings. Raises UsageProblem."""
        if not prompt.strip():
            raise UsageProblem("--prompt is empty; write what to ask, or leave it out to take turns")
        steps = list(compare)
        for request in self._variants(steps):
            request.messages.append(Message(role="user", content=prompt))
            if self.json:
                self._document(request)
                continue
            if steps:
                print(f"--- {_which(request)}", flush=True)
            self._show(self._pieces(request))

    def talk(self, compare: Iterable[int]) -> None:
        """Takes turns until the input ends. Raises UsageProblem for what only one prompt can have."""
        if self.json or list(compare):
            raise UsageProblem("--json and --compare need --prompt")
        if sys.stdin.isatty():
            print(HELP, file=sys.stderr)
        said = list(self._request.messages)
        for line in typed_lines():
            if line == RESET:
                del self._request.messages[len(said) :]
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """One question and its answer, both of which the next turn builds on, unless it was stopped or failed."""
        self._request.messages.append(Message(role="user", content=line))
        try:
            answer = self._show(self._pieces(self._request))
        except (KeyboardInterrupt, ApiError) as error:
            if not sys.stdin.isatty():
                raise
            print("\n(stopped)" if isinstance(error, KeyboardInterrupt) else f"\nError: {error}", flush=True)
            del self._request.messages[-1]
            return
        self._request.messages.append(Message(role="assistant", content=answer))

    def _variants(self, steps: list[int]) -> Iterator[GenerateRequest]:
        asked = [(self._request.base_model, self._request.checkpoint_step), *((False, step) for step in steps)]
        for base_model, step in asked:
            request = GenerateRequest()
            request.CopyFrom(self._request)
            request.base_model, request.checkpoint_step = base_model, step
            yield request

    def _pieces(self, request: GenerateRequest) -> Generator[GenerateResponse]:
        """The answer; leaving it early stops the model."""
        with closing(self.client.generate(request)) as responses:
            for response in responses:
                if response.HasField("loading"):
                    self._tell_loading(response)
                yield response

    def _tell_loading(self, response: GenerateResponse) -> None:
        phase = response.loading.phase
        if phase != self._loading and sys.stderr.isatty():
            print(f"({text.harmless(phase)} ...)", file=sys.stderr, flush=True)
        self._loading = phase

    def _show(self, responses: Generator[GenerateResponse]) -> str:
        """Prints an answer as it comes; all of it."""
        answer = ""
        with closing(responses):
            for response in responses:
                answer += response.text
                print(text.harmless_lines(response.text), end="", flush=True)
        print(flush=True)
        return answer

    def _document(self, request: GenerateRequest) -> None:
        responses = list(self._pieces(request))
        document = {
            "checkpoint_step": request.checkpoint_step,
            "base_model": request.base_model,
            "text": "".join(response.text for response in responses),
            "finish_reason": next((it.finish_reason for it in reversed(responses) if it.finish_reason), ""),
            "usage": next(
                (
                    MessageToDict(it.usage, preserving_proto_field_name=True)
                    for it in reversed(responses)
                    if it.HasField("usage")
                ),
                {},
            ),
        }
        print(json_module.dumps(document, ensure_ascii=False), flush=True)


def _which(request: GenerateRequest) -> str:
    if request.base_model:
        return "base model"
    return f"checkpoint {request.checkpoint_step}" if request.checkpoint_step else "final model"


def typed_lines() -> Iterator[str]:
    """What the user types, line by line, until the input or the user ends it; Ctrl-C forgets a line."""
    told = True
    while True:
        try:
            if not told:
                print("\n(Ctrl-D ends)", flush=True)
                told = True
            line = input(QUESTION if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            told = False
            continue
        if line in EXIT:
            return
        yield line
