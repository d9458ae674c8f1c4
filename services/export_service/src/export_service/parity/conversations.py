"""How a tokenizer and its chat template write conversations, and whether an exported form writes them so too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from export_service.gguf.vocabulary import put_around
from export_service.parity.llama import GgufUnreadable
from modelkit.datasets import Message
from modelkit.ending import template_source
from modelkit.errors import InvalidTemplate, Problem
from modelkit.templates import ChatTemplate

KEYS = "tokenizer.ggml."
LONGER = 2  # prompts that other conversations are made of
TOLD_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Writing:
    """A chat template, empty without one, and the special tokens it is given.

    begins and ends say whether a text gets a first and a last token of its own.
    """

    template: str
    special_tokens: Mapping[str, str]
    begins: bool
    ends: bool

    def texts(self, prompts: Sequence[str]) -> list[str | None]:
        """Each prompt as the model is asked it, then longer conversations; None for one that the template refuses."""
        if not self.template:
            return list(prompts)
        conversations = list(_conversations(prompts))
        try:
            template = ChatTemplate(self.template, self.special_tokens)
            with template.time_limit():
                return [_rendered(template, messages) for messages in conversations]
        except InvalidTemplate:
            return [None] * len(conversations)


def writing_of(tokenizer: Any) -> Writing:
    """That of a tokenizer in Hugging Face form."""
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return Writing(template_source(tokenizer) or "", tokens, *put_around(tokenizer))


def writing_in(file: Path) -> Writing:
    """That of a GGUF file; templates are given its first and last token. Raises GgufUnreadable."""
    try:
        fields = GGUFReader(file).fields
        names = fields[f"{KEYS}tokens"]
        numbers = {name: fields.get(f"{KEYS}{name}_token_id") for name in ("bos", "eos")}
        tokens = {f"{name}_token": names.contents(int(number.contents())) for name, number in numbers.items() if number}
        found = [fields.get(key) for key in ("tokenizer.chat_template", f"{KEYS}add_bos_token", f"{KEYS}add_eos_token")]
        template, begins, ends = (field.contents() if field else None for field in found)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise GgufUnreadable(Problem("", f"{file.name} is damaged: {error}")) from error
    return Writing(template or "", tokens, bool(begins), bool(ends))


def differences(wanted: Writing, got: Writing, prompts: Sequence[str]) -> Iterator[str]:
    """What a form does otherwise than was trained, in words. What the trained template refuses is not compared."""
    for name, ours, theirs in (("first", wanted.begins, got.begins), ("last", wanted.ends, got.ends)):
        if ours != theirs:
            yield f"texts {'do not get the' if ours else 'get a'} {name} token"
    if bool(wanted.template) != bool(got.template):
        yield "the chat template is missing" if wanted.template else "there is a chat template where training had none"
        return
    for text, other in zip(wanted.texts(prompts), got.texts(prompts), strict=True):
        if text is not None and text != other:
            yield f"a conversation is written {_told(other)} instead of {_told(text)}"


def _conversations(prompts: Sequence[str]) -> Iterator[list[Message]]:
    """Prompts alone, then with a system message and with a reply, at the end too."""
    yield from ([Message(role="user", content=prompt)] for prompt in prompts)
    system = Message(role="system", content="Be kind.")
    for prompt in prompts[:LONGER]:
        asked, reply = Message(role="user", content=prompt), Message(role="assistant", content="Yes: 1, 2.")
        yield [system, asked]
        yield [asked, reply, asked]
        yield [system, asked, reply]


def _rendered(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=messages[-1]["role"] == "user")
    except InvalidTemplate:
        return None


def _told(text: str | None) -> str:
    if text is None:
        return "not at all"
    return repr(text if len(text) <= TOLD_CHARACTERS else f"{text[:TOLD_CHARACTERS]}…")
