"""Chat templates turn a conversation into the text a model reads. They come with models, so they are not trusted."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate, Problem
from modelkit.replies import REPLY, Marks, Replies, Span, Written
from modelkit.sandbox import TemplateTimeoutError, TimeLimit, bounded_environment, bounded_join
from modelkit.template_plans import (
    TROUBLE,
    DependsOnContent,
    Plan,
    StoodIn,
    join_parts,
    lays_out_only,
    let_through,
    plan_of,
    stand_ins,
)

SECONDS = 10.0  # of processor time, for one conversation at most
CONVERSATION_SECONDS = 0.25  # what each conversation that is done gives those after it, for what they may take together
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
    {%- elif message['role'] == 'tool' %}
        {{- '### Result:\\n' + message['content'] + '\\n\\n' }}
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
PLAN_AFTER = 16  # conversations of one order of roles; fewer are rendered sooner than planned
MAX_PLANS = 512
WRITTEN = Written()

Roles = tuple[str, ...]
Joiner = Callable[[Any], str]


class ChatTemplate:
    """A compiled template. marked: it says itself, with generation marks, what the assistant writes.

    Raises InvalidTemplate when the source cannot be compiled, and when rendering fails, never ends or grows huge.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, seconds: float = SECONDS) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.marked = GENERATION_MARK.search(source) is not None
        self._seconds = seconds
        self._limit = BASE_CHARACTERS
        self._seen: Counter[Roles] = Counter()
        self._plans: dict[Roles, Plan | None] = {}
        with self.time_limit():
            self._template = self._compile(bounded_environment(lambda: self._limit))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation."""
        self._allow(messages)
        return "".join(self._render_into([], self._template, messages, add_generation_prompt))

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the character ranges that the template marks as the assistant's."""
        self._allow(messages)
        return self._render_marked(self._template, messages)

    def reply_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation and the character ranges of the replies, marked or not."""
        self._allow(messages)
        return self._reply_spans(self._template, messages)

    def plan(self, messages: Sequence[Message]) -> Plan | None:
        """How conversations of this order of roles are written, if the template only lays them out.

        None while few of them were seen, and where rendering has to do.
        """
        roles = tuple(turn["role"] for turn in messages)
        if roles not in self._plans:
            self._seen[roles] += 1
            if self._seen[roles] < PLAN_AFTER or len(self._plans) >= MAX_PLANS:
                return None
            self._plans[roles] = self._make_plan(roles)
        plan = self._plans[roles]
        if plan is None or any(not (content := turn["content"]) or content.isspace() for turn in messages):
            return None
        return plan

    @contextmanager
    def time_limit(self) -> Iterator[TimeLimit]:
        """What is rendered within must take a few seconds of processor time."""
        try:
            with TimeLimit(self._seconds) as limit:
                yield limit
        except TemplateTimeoutError:
            raise _invalid(f"the chat template did not end within {self._seconds:.0f} seconds") from None

    def _compile(self, environment: ImmutableSandboxedEnvironment, join: Joiner | None = None) -> Template:
        try:
            template = environment.from_string(self.source)
        except (TemplateError, RecursionError, SyntaxError) as error:
            raise _invalid(f"the chat template cannot be compiled: {error or type(error).__name__}") from error
        names = template.root_render_func.__globals__
        names["str_join"] = names["markup_join"] = join or self._join
        return template

    def _join(self, parts: Any) -> str:
        return bounded_join(parts, lambda: self._limit)

    def _allow(self, messages: Sequence[Message]) -> None:
        """Bounds what may come of a conversation."""
        self._limit = BASE_CHARACTERS + CHARACTERS_PER_CHARACTER * sum(len(turn["content"]) for turn in messages)

    def _make_plan(self, roles: Roles) -> Plan | None:
        environment = bounded_environment(lambda: self._limit)
        self._limit = BASE_CHARACTERS
        try:
            if not lays_out_only(self.source, environment):
                return None
            let_through(environment)
            template = self._compile(environment, lambda parts: join_parts(parts, self._join))
            return plan_of(*self._reply_spans(template, stand_ins(roles), StoodIn()))
        except (*TROUBLE, InvalidTemplate):
            return None

    def _render_marked(self, template: Template, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        pieces: list[str] = []
        spans: list[Span] = []
        environment: Any = template.environment
        with environment.activate_tracker(pieces, spans):
            self._render_into(pieces, template, messages, False)
        return "".join(pieces), spans

    def _reply_spans(
        self, template: Template, messages: Sequence[Message], marks: Marks = WRITTEN
    ) -> tuple[str, list[Span]]:
        text, spans = self._render_marked(template, messages) if self.marked else ("", [])
        spans = [span for span in spans if span[0] < span[1]]
        if spans:
            return text, spans

        def render(turns: Sequence[Message], add_generation_prompt: bool) -> str:
            return "".join(self._render_into([], template, turns, add_generation_prompt))

        text = render(messages, False)
        return text, Replies(render, messages, text, marks, self._header).spans()

    @cached_property
    def _header(self) -> str:
        """What asks for a reply at the end of every text, also when it is not to; empty in most templates."""
        question, reply = Message(role="user", content="question"), Message(role="assistant", content=REPLY)

        def render(*turns: Message) -> str:
            return "".join(self._render_into([], self._template, turns, False))

        try:
            whole, header = render(question, reply), render(reply).partition(REPLY)[0]
            goes_on = render(question, reply, question).startswith(whole)
        except InvalidTemplate:
            return ""
        header = header.removeprefix(self.special_tokens.get("bos_token", ""))
        return header if header.strip() and whole.partition(REPLY)[2].endswith(header) and not goes_on else ""

    def _render_into(
        self, pieces: list[str], template: Template, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[str]:
        size = 0
        try:
            for piece in template.generate(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > self._limit:
                    raise TemplateError(f"more than {self._limit} characters come of one conversation")
        except (TemplateTimeoutError, DependsOnContent):
            raise
        except Exception as error:
            raise _invalid(f"the chat template does not fit the conversation: {error}") from error
        return pieces


def _invalid(message: str) -> InvalidTemplate:
    return InvalidTemplate(Problem("base_model", message))
