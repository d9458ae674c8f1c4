"""Where replies end: models that were not made for conversations do not name what a chat template ends replies with."""

from typing import Any

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate
from modelkit.templates import ChatTemplate

PROBE = (Message(role="user", content="question"), Message(role="assistant", content="reply"))


def template_source(tokenizer: Any) -> str | None:
    """The chat template; of several the one that conversations are written with."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default") or next(iter(source.values()), None)
    return str(source) if source else None


def reply_ends(tokenizer: Any) -> list[int]:
    """The special token that the tokenizer's chat template puts after a reply, if there is one."""
    if (source := template_source(tokenizer)) is None:
        return []
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    try:
        template = ChatTemplate(source, tokens)
        with template.time_limit():
            text = template.render(PROBE)
    except InvalidTemplate:
        return []
    after = text.rpartition(PROBE[1]["content"])[2].lstrip()
    found = tokenizer(after, add_special_tokens=False)["input_ids"][:1]
    added = tokenizer.added_tokens_decoder
    return [number for number in found if number in added and added[number].special]


def end_replies(settings: Any, ends: list[int]) -> None:
    """Lets generation with these settings (a GenerationConfig) end at some tokens too."""
    known = settings.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    merged = list(dict.fromkeys([*known, *ends]))
    if merged != known:
        settings.eos_token_id = merged if len(merged) > 1 else merged[0]
