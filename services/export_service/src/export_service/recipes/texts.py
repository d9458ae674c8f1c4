"""Training rows as texts: as the model reads them, and as what somebody asks it."""

from collections.abc import Sequence
from typing import Any

from export_service.rows import Messages
from modelkit.chat import ChatEncoder
from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate

PROMPTS = 6
PROMPT_CHARACTERS = 400
PLAIN = "text"
GENERAL = (
    "Write a short note about the weather of the last week.",
    "What does a bridge have to carry beside its own weight?",
    "用一句话介绍你自己。",
    "List three things that you need to bake bread.",
)


def prompts(rows: Sequence[Messages]) -> list[str]:
    """What the model is asked when it is compared; general questions where there are no rows."""
    asked = [text for row in rows if (text := _question(row))]
    return [text[:PROMPT_CHARACTERS] for text in asked[:PROMPTS]] or list(GENERAL)


def training_texts(rows: Sequence[Messages], tokenizer: Any) -> list[str]:
    """Rows as training wrote them. One that the chat template refuses is passed over."""
    encoder = ChatEncoder(tokenizer, max_length=1)
    texts = []
    for row in rows:
        if row[0]["role"] == PLAIN:
            texts.append(row[0]["content"])
            continue
        messages = [Message(role=item["role"], content=item["content"]) for item in row]
        try:
            with encoder.template.time_limit():
                texts.append(encoder.template.render(messages))
        except InvalidTemplate:
            continue
    return texts


def _question(row: Messages) -> str:
    """The first thing that is asked in a row, or the beginning of its text."""
    return next((item["content"] for item in row if item["role"] in ("user", PLAIN)), "")
