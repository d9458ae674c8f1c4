"""A chat completion as OpenAI's clients ask for it, as a request to the evaluation service.

What a client leaves out has OpenAI's defaults. Members that nobody here knows are passed over, because clients send
many; those that would change the answer and cannot be honoured are refused.
"""

import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from parameterkit.messages import received
from servicekit.errors import InvalidArgument, Problem
from tunesmith.eval.v1 import eval_service_pb2 as pb

MAX_TOKENS = 4096
MOST_STOPS = 16
SEEDS = 1 << 32
NUMBERS = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "min_p": 0.0, "repetition_penalty": 1.0}
COUNTS = ("top_k", "max_tokens", "max_completion_tokens", "seed")
SYSTEM_ROLES = {"developer": "system"}
# Members that change what an answer is, and the values with which they do not.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
}


def fill(request: pb.GenerateRequest, document: Mapping[str, Any]) -> None:
    """Puts conversation and sampling of a document into a request. Raises InvalidArgument with every problem."""
    problems = [*_refusals(document), *_misfits(document)]
    messages = list(_messages(document.get("messages"), problems))
    if problems:
        raise InvalidArgument(problems=problems)
    request.messages.extend(messages)
    for name, default in NUMBERS.items():
        setattr(request, name, _given(document, name, default))
    request.top_k = _given(document, "top_k", 0)
    request.seed = _given(document, "seed", random.getrandbits(32)) % SEEDS
    most = _given(document, "max_tokens", MAX_TOKENS)
    request.max_tokens = _given(document, "max_completion_tokens", most)
    request.stop.extend(_stops(document))


def is_streamed(document: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether the stream ends with its usage. Raises InvalidArgument."""
    stream, options = document.get("stream"), document.get("stream_options")
    if stream not in (None, True, False):
        raise InvalidArgument(problems=[Problem("stream", f"true or false was expected, not {received(stream)}")])
    if options is not None and not isinstance(options, dict):
        text = f"an object was expected, not {received(options)}"
        raise InvalidArgument(problems=[Problem("stream_options", text)])
    return bool(stream), bool((options or {}).get("include_usage"))


def _given(document: Mapping[str, Any], name: str, default: Any) -> Any:
    value = document.get(name)
    return default if value is None else value


def _refusals(document: Mapping[str, Any]) -> Iterator[Problem]:
    for name, harmless in REFUSED.items():
        value = document.get(name)
        if value is not None and value not in harmless:
            yield Problem(name, f"{received(value)} is not supported here; leave it out")
    form = document.get("response_format")
    if form is not None and (not isinstance(form, dict) or form.get("type") not in (None, "text")):
        yield Problem("response_format", "only text is supported here; leave it out")


def _misfits(document: Mapping[str, Any]) -> Iterator[Problem]:
    for name in NUMBERS:
        value = document.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            yield Problem(name, f"a number was expected, not {received(value)}")
    for name in COUNTS:
        value = document.get(name)
        least, most = (-(1 << 63), (1 << 63) - 1) if name == "seed" else (int(name != "top_k"), (1 << 31) - 1)
        if value is not None and not (type(value) is int and least <= value <= most):
            yield Problem(name, f"a whole number from {least} to {most} was expected, not {received(value)}")
    tokens = [document.get(name) for name in ("max_tokens", "max_completion_tokens")]
    if None not in tokens and tokens[0] != tokens[1]:
        yield Problem("max_completion_tokens", "differs from max_tokens, which means the same; give one of them")
    stops = document.get("stop")
    texts = [stops] if isinstance(stops, str) else stops
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)):
        yield Problem("stop", f"a text, or a list of up to {MOST_STOPS} texts was expected, not {received(stops)}")


def _stops(document: Mapping[str, Any]) -> list[str]:
    stops = document.get("stop") or []
    return [stops] if isinstance(stops, str) else list(stops)


def _messages(given: Any, problems: list[Problem]) -> Iterator[pb.Message]:
    if not isinstance(given, list) or not given:
        what = "an empty one" if given == [] else received(given)
        problems.append(Problem("messages", f"a list of messages was expected, not {what}"))
        return
    for place, message in enumerate(given):
        field = f"messages[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            problems.append(
                Problem(field, f'an object with "role" and "content" was expected, not {received(message)}')
            )
            continue
        text = _text(message.get("content"))
        if text is None:
            problems.append(Problem(f"{field}.content", "a text, or parts of type text, were expected"))
            continue
        yield pb.Message(role=SYSTEM_ROLES.get(role, role), content=text)


def _text(content: Any) -> str | None:
    """The text of a message, which may come in parts; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    whole = len(parts) == len(content) and all(isinstance(part, str) for part in parts)
    return "".join(map(str, parts)) if whole else None
