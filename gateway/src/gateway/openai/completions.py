"""Chat completions as OpenAI's clients read them: whole, or in chunks as server-sent events."""

import secrets
import time
from typing import Any

import orjson

from gateway.native.streams import Events
from gateway.openai import errors
from servicekit.errors import TunesmithError
from tunesmith.eval.v1 import eval_service_pb2 as pb

DONE = b"data: [DONE]\n\n"


class Completion:
    """One completion: its id, and what every document of it says."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, responses: list[pb.GenerateResponse]) -> dict[str, Any]:
        """The document of an answer that has ended."""
        text = "".join(response.text for response in responses)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None}
        finish_reason = responses[-1].finish_reason if responses else "stop"
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [{**choice, "finish_reason": finish_reason}],
            "usage": _usage(responses[-1].usage) if responses else None,
        }

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of an answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def usage(self, usage: pb.TokenUsage) -> dict[str, Any]:
        """The last piece, where it was asked for."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)}


class Chunks(Events):
    """The framing of a streamed completion. News of loading are comments, which clients pass over."""

    opening = b""
    end = DONE

    def __init__(self, completion: Completion, *, with_usage: bool) -> None:
        self._completion = completion
        self._with_usage = with_usage
        self._begun = False

    def message(self, value: Any) -> bytes:
        """What one response of the service adds to the stream."""
        response: pb.GenerateResponse = value
        if response.HasField("loading"):
            return b": %s %d%%\n\n" % (response.loading.phase.encode(), int(response.loading.percent))
        parts = []
        if not self._begun:
            self._begun = True
            parts.append(self._completion.chunk({"role": "assistant", "content": ""}))
        if response.text:
            parts.append(self._completion.chunk({"content": response.text}))
        if response.finish_reason:
            parts.append(self._completion.chunk({}, response.finish_reason))
        if self._with_usage:
            parts = [{**part, "usage": None} for part in parts]
            if response.finish_reason:
                parts.append(self._completion.usage(response.usage))
        return b"".join(b"data: %s\n\n" % orjson.dumps(part) for part in parts)

    def error(self, error: TunesmithError) -> bytes:
        """An error after the stream has begun."""
        return b"data: %s\n\n" % orjson.dumps(errors.document(error))


def _usage(usage: pb.TokenUsage) -> dict[str, int]:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
