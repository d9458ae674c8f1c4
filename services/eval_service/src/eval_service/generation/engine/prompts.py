"""A conversation as the model was taught to read it: its own chat template, or plain text where it has none."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from eval_service.generation.engine.errors import ConversationRefused
from modelkit.datasets import Message
from modelkit.ending import PROBE, ends_written_by
from modelkit.errors import InvalidTemplate
from modelkit.templates import ChatTemplate


class Prompts:
    """Writes conversations for a model.

    Without a template the texts of all messages are joined by empty lines, and the model goes on where they end; that
    is the form of plain-text training.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        self._template = ChatTemplate(template, special_tokens) if template else None

    @property
    def continues(self) -> bool:
        """The answer goes on with the text of the conversation, instead of beginning anew."""
        return self._template is None

    def text(self, messages: Sequence[Message]) -> str:
        """The text that is read. Raises ConversationRefused when the template refuses the conversation."""
        if self._template is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            with self._template.time_limit():
                return self._template.render(messages, add_generation_prompt=True)
        except InvalidTemplate as error:
            raise ConversationRefused(
                f"messages: {error.problems[0].message}", reason="CONVERSATION_DOES_NOT_FIT_TEMPLATE"
            ) from error

    @cached_property
    def before_reply(self) -> str:
        """What the template writes between what is read and a reply, so that answers begin with it: white space, or
        room for thoughts. Empty where it writes nothing, and where it refuses.
        """
        if self._template is None:
            return ""
        try:
            with self._template.time_limit():
                read = self._template.render(PROBE[:1], add_generation_prompt=True)
                whole = self._template.render(PROBE)
        except InvalidTemplate:
            return ""
        between, found, _ = whole.removeprefix(read).partition(PROBE[1]["content"])
        return between if found and whole.startswith(read) else ""

    def ends(self, encode: Callable[[str], list[int]], is_added: Callable[[int], bool]) -> list[int]:
        """The token that the template ends a reply with, if there is one."""
        return ends_written_by(self._template, encode, is_added)


def opening_of(prompts: Prompts, encode: Callable[[str], list[int]], decode: Callable[[Sequence[int]], str]) -> str:
    """What the template writes at the beginning of replies, as tokens say it: special ones are no text."""
    text = prompts.before_reply
    return text if not text or text.isspace() else decode(encode(text))


def end_tokens(
    configured: Sequence[Any], prompts: Prompts, encode: Callable[[str], list[int]], is_added: Callable[[int], bool]
) -> frozenset[int]:
    """Tokens that end an answer: those that are configured (numbers, lists of them, or None), and what the template
    ends a reply with."""
    ends: set[int] = set()
    for entry in configured:
        ends.update(map(int, entry if isinstance(entry, list | tuple) else [] if entry is None else [entry]))
    return frozenset(ends.union(prompts.ends(encode, is_added)))
