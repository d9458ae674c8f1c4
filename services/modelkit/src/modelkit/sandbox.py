"""The sandbox of transformers for chat templates, bounded in time and in the size of what a template builds.

Jinja's sandbox keeps a template from reaching Python; it does not keep one from looping for ever or from filling the
memory by doubling a text. Every operation that makes a longer text or list is checked here before it runs.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

UNBOUNDED_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
PADDING_FILTERS = ("center", "indent", "wordwrap")
MAX_PADDING = 1000
MAX_BASE, MAX_EXPONENT = 10**6, 64
MIN_WAIT = 0.01
AGAIN = 0.25  # seconds of processor time in which what was raised reaches the end of what is limited

Limit = Callable[[], int]


class TemplateTimeoutError(Exception):
    """Rendering took too long."""


class TimeLimit:
    """Stops the Python code of this thread by raising TemplateTimeoutError in it, again where it is lost.

    It is lost in a finalizer, for example, which Python may call at any time, and whose errors go nowhere.
    What counts is the thread's own processor time: a machine that is busy or suspended does not make a template slow.
    """

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._seconds = seconds
        self._end = time.clock_gettime(self._clock) + seconds
        self._lock = threading.Lock()
        self._over = self._fired = False
        self._timer = self._arm(seconds)

    def extend(self, seconds: float) -> None:
        """Gives this much more time, so that no more is left than there was at first."""
        with self._lock:
            self._end = min(self._end + seconds, time.clock_gettime(self._clock) + self._seconds)

    def _arm(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._fire)
        timer.daemon = True
        return timer

    def _fire(self) -> None:
        with self._lock:
            if self._over:
                return
            if (left := self._end - time.clock_gettime(self._clock)) > 0:
                self._timer = self._arm(max(left, MIN_WAIT))
                self._timer.start()
                return
            self._fired = True
            self._end += AGAIN
            self._timer = self._arm(AGAIN)
            self._timer.start()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(TemplateTimeoutError)
            )

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._stop()
        except TemplateTimeoutError:  # it arrives here
            self._stop()
            raise

    def _stop(self) -> None:
        with self._lock:
            self._over = True
            if self._fired:  # it may still be on its way
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
            self._timer.cancel()


def bounded_environment(limit: Limit) -> ImmutableSandboxedEnvironment:
    """The environment in which transformers renders chat templates; no text may grow beyond limit() characters."""
    compile_template: Any = chat_template_utils._cached_compile_jinja_template
    environment: Any = compile_template("").environment
    safe, call, wrap_format = environment.is_safe_attribute, environment.call, environment.wrap_str_format

    def is_safe_attribute(value: object, name: str, attribute: object) -> bool:
        return name not in UNBOUNDED_METHODS and bool(safe(value, name, attribute))

    def refuse_format(value: object) -> None:
        if wrap_format(value) is not None:
            raise SecurityError("text formatting is not available to chat templates")

    def bounded_call(context: object, function: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name in _GROWTH:
            _refuse_beyond(_GROWTH[name](owner, *args), limit)
        return call(context, function, *args, **kwargs)

    def call_binop(_: object, operator: str, left: Any, right: Any) -> Any:
        _refuse_beyond(_operator_size(operator, left, right), limit)
        return environment.binop_table[operator](left, right)

    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.call_binop = call_binop
    environment.is_safe_attribute = is_safe_attribute
    environment.call = bounded_call
    environment.wrap_str_format = refuse_format
    environment.concat = lambda parts: bounded_join(parts, limit)
    environment.filters.pop("format")
    for name in PADDING_FILTERS:
        environment.filters[name] = _bounded_padding(environment.filters[name])
    environment.filters["join"] = lambda parts, separator="": bounded_join(parts, limit, separator)
    environment.filters["replace"] = lambda text, old, new, count=-1: bounded_replace(str(text), old, new, count, limit)
    bounded: ImmutableSandboxedEnvironment = environment
    return bounded


def bounded_join(parts: Any, limit: Limit, separator: Any = "") -> str:
    """Joins the parts' texts."""
    texts = [str(part) for part in parts]
    _refuse_beyond(_joined_size(str(separator), texts), limit)
    return str(separator).join(texts)


def bounded_replace(text: str, old: str, new: str, count: int, limit: Limit) -> str:
    """Replaces text, the first count times when count is not negative."""
    _refuse_beyond(_replaced_size(text, old, new), limit)
    return text.replace(old, new, count if count is not None else -1)


def _joined_size(separator: str, parts: Any, *_: Any) -> int:
    texts = list(parts)
    return sum(len(text) for text in texts if isinstance(text, str)) + len(separator) * len(texts)


def _replaced_size(text: str, old: Any, new: Any, *_: Any) -> int:
    return len(text) + text.count(str(old)) * len(str(new))


_GROWTH: dict[str, Callable[..., int]] = {"join": _joined_size, "replace": _replaced_size}


def _operator_size(operator: str, left: Any, right: Any) -> int:
    """Characters or items that the result of an operator has; 0 for numbers of sensible size."""
    sizes = [len(value) for value in (left, right) if hasattr(value, "__len__")]
    if operator == "%" and isinstance(left, str):
        raise SecurityError("text formatting is not available to chat templates")
    if operator == "**" and not (abs(left) <= MAX_BASE and abs(right) <= MAX_EXPONENT):
        raise SecurityError("numbers too large for a chat template")
    if operator == "*" and sizes:
        times = right if hasattr(left, "__len__") else left
        return int(sizes[0] * max(times, 0))
    return sum(sizes)


def _bounded_padding(apply: Any) -> Any:
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, int) and value > MAX_PADDING for value in (*args, *kwargs.values())):
            raise SecurityError("padding too wide for a chat template")
        return apply(*args, **kwargs)

    if hasattr(apply, "jinja_pass_arg"):
        bounded.jinja_pass_arg = apply.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def _refuse_beyond(size: int, limit: Limit) -> None:
    if size > limit():
        raise SecurityError(f"a text of {size} characters is too long for a chat template")
