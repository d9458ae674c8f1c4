"""Where replies end: models that were not made for conversations do not name what a chat template ends replies with."""

from collections.abc import Callable
from typing import Any

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate
from modelkit.templates import ChatTemplate

PROBE: tuple[Message, Message] = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"})


def template_source(tokenizer: Any) -> str | None:
    """The chat template; of several the one that conversations are written with."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default") or next(iter(source.values()), None)
    return str(source) if source else None


def template_of(tokenizer: Any) -> ChatTemplate | None:
    """The chat template with the tokenizer's special tokens, None without one. Raises InvalidTemplate."""
    source = template_source(tokenizer)
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return ChatTemplate(source, tokens) if source else None


def reply_ends(tokenizer: Any) -> list[int]:
    """The token that the tokenizer's chat template ends a reply with, if there is one."""
    try:
        template = template_of(tokenizer)
    except InvalidTemplate:
        return []
    added = tokenizer.added_tokens_decoder
    return ends_written_by(template, lambda text: tokenizer.encode(text, add_special_tokens=False), added.__contains__)


def ends_written_by(
    template: ChatTemplate | None, encode: Callable[[str], list[int]], is_added: Callable[[int], bool]
) -> list[int]:
    """The token that a template puts after a reply, if there is one that is no ordinary text."""
    if template is None:
        return []
    try:
        with template.time_limit():
            text = template.render(PROBE)
    except InvalidTemplate:
        return []
    after = text.rpartition(PROBE[1]["content"])[2].lstrip()
    return [token for token in encode(after)[:1] if is_added(token)] if after else []


def end_replies(settings: Any, ends: list[int]) -> None:
    """Lets generation with these settings (a GenerationConfig) end at some tokens too."""
    known = settings.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    merged = list(dict.fromkeys([*known, *ends]))
    if merged != known:
        settings.eos_token_id = merged if len(merged) > 1 else merged[0]
        settings._from_model_config = False  # transformers may read config.json instead of settings that came from it
