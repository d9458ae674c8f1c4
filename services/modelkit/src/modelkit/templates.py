"""Chat templates turn a conversation into the text a model reads. They come with models, so they are not trusted."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate, Problem
from modelkit.sandbox import TemplateTimeoutError, TimeLimit, bounded_environment, bounded_join

SECONDS = 10.0
BASE_CHARACTERS = 1 << 20
CHARACTERS_PER_CHARACTER = 64
GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
FALLBACK = """\
{{- bos_token or '' }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
    {%- else %}
        {{- '### Response:\\n' }}
        {%- generation %}{{- message['content'] + (eos_token or '') }}{%- endgeneration %}
        {{- '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

Span = tuple[int, int]


class ChatTemplate:
    """A compiled template. marked: it says itself, with generation marks, what the assistant writes.

    Raises InvalidTemplate when the source cannot be compiled, and when rendering fails, never ends or grows huge.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, seconds: float = SECONDS) -> None:
        self.marked = GENERATION_MARK.search(source) is not None
        self._special_tokens = dict(special_tokens)
        self._seconds = seconds
        self._limit = BASE_CHARACTERS
        with self.time_limit():
            try:
                self._template = bounded_environment(lambda: self._limit).from_string(source)
            except (TemplateError, RecursionError, SyntaxError) as error:
                raise _invalid(f"the chat template cannot be compiled: {error or type(error).__name__}") from error
        names = self._template.root_render_func.__globals__
        names["str_join"] = names["markup_join"] = lambda parts: bounded_join(parts, lambda: self._limit)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation."""
        pieces: list[str] = []
        self._render_into(pieces, messages, add_generation_prompt)
        return "".join(pieces)

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the character ranges that the template marks as the assistant's."""
        pieces: list[str] = []
        spans: list[Span] = []
        environment: Any = self._template.environment
        with environment.activate_tracker(pieces, spans):
            self._render_into(pieces, messages, False)
        return "".join(pieces), spans

    @contextmanager
    def time_limit(self) -> Iterator[None]:
        """What is rendered within must take a few seconds of processor time; one limit serves a whole batch."""
        try:
            with TimeLimit(self._seconds):
                yield
        except TemplateTimeoutError:
            raise _invalid(f"the chat template did not end within {self._seconds:.0f} seconds") from None

    def _render_into(self, pieces: list[str], messages: Sequence[Message], add_generation_prompt: bool) -> None:
        self._limit = BASE_CHARACTERS + CHARACTERS_PER_CHARACTER * sum(len(turn["content"]) for turn in messages)
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > self._limit:
                    raise TemplateError(f"more than {self._limit} characters come of one conversation")
        except TemplateTimeoutError:
            raise
        except Exception as error:
            raise _invalid(f"the chat template does not fit the conversation: {error}") from error


def _invalid(message: str) -> InvalidTemplate:
    return InvalidTemplate(Problem("base_model", message))
