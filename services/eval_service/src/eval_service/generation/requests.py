"""What a caller may ask for, and the defaults of what is left out."""

from collections.abc import Iterator
from typing import Any

from servicekit.errors import InvalidArgument, Problem
from tunesmith.eval.v1 import eval_service_pb2 as pb

MOST_TOKENS = 32_768
MOST_CHARACTERS = 1 << 20
MOST_CANDIDATES = 1_000_000
ROLES = ("system", "user", "assistant")
DEFAULTS: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.0,
    "seed": 42,
}
MAX_TOKENS = 256


def wish_of(request: pb.GenerateRequest) -> dict[str, Any]:
    """What the process of a model is told, the variant left out. Raises InvalidArgument with every problem."""
    if problems := list(_problems(request)):
        raise InvalidArgument(problems=problems)
    given = {field.name: value for field, value in request.ListFields()}
    sampling = {name: given.get(name, value) for name, value in DEFAULTS.items()}
    sampling["repetition_penalty"] = sampling["repetition_penalty"] or 1.0  # 0 switches it off, as 1 does
    return {
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "sampling": sampling,
        "max_tokens": request.max_tokens if request.HasField("max_tokens") else MAX_TOKENS,
        "stop": list(request.stop),
    }


def _problems(request: pb.GenerateRequest) -> Iterator[Problem]:
    if request.HasField("max_tokens") and not 1 <= request.max_tokens <= MOST_TOKENS:
        yield Problem("max_tokens", f"is {request.max_tokens}; a whole number from 1 to {MOST_TOKENS} is expected")
    if request.top_k > MOST_CANDIDATES:
        yield Problem("top_k", f"is {request.top_k}; at most {MOST_CANDIDATES} is expected, 0 for all tokens")
    if request.HasField("repetition_penalty") and not 0 <= request.repetition_penalty <= 2:
        text = f"is {request.repetition_penalty:g}; a number from 0 to 2 is expected, 0 and 1 change nothing"
        yield Problem("repetition_penalty", text)
    if request.base_model and request.checkpoint_step:
        yield Problem("checkpoint_step", "the base model has no checkpoints; leave it out, or base_model")
    yield from _message_problems(request)


def _message_problems(request: pb.GenerateRequest) -> Iterator[Problem]:
    for place, message in enumerate(request.messages):
        if message.role not in ROLES:
            text = f"is {message.role[:40]!r}; one of {', '.join(ROLES)} is expected"
            yield Problem(f"messages[{place}].role", text)
        elif message.role == "system" and place:
            yield Problem(f"messages[{place}].role", "a system message can only be the first")
    characters = sum(len(message.content) for message in request.messages)
    if characters > MOST_CHARACTERS:
        yield Problem("messages", f"have {characters} characters; at most {MOST_CHARACTERS} are taken")
    if request.messages and request.messages[-1].role == "system":
        yield Problem("messages", "end with a system message; end with what the user says")
