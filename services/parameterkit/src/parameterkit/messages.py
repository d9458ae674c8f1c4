"""What is said about values, in both languages, and the problems that carry it."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

ENGLISH, CHINESE = "en", "zh"
_LONGEST = 60


class Problem(NamedTuple):
    """One thing that is wrong: the name that the caller used, and what to do about it."""

    field: str
    message: str


class Text(NamedTuple):
    """A message in both languages, with the same {placeholders}."""

    en: str
    zh: str

    def say(self, language: str, **values: Any) -> str:
        """The message in a language, English unless it is "zh"; values that are words are joined as it joins them."""
        chinese = language == CHINESE
        joined = {name: _joined(value, chinese) for name, value in values.items()}
        return (self.zh if chinese else self.en).format(**joined)


class Refused(ValueError):
    """A value that cannot be taken; say() tells why."""

    def __init__(self, text: Text, **values: Any) -> None:
        super().__init__(text.say(ENGLISH, **values))
        self._text = text
        self._values = values

    def say(self, language: str) -> str:
        """What was expected, in a language."""
        return self._text.say(language, **self._values)


class Received:
    """A value as a message shows it: short, and named by its kind when it is no scalar."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def shown(self, chinese: bool) -> str:
        """The value in a language."""
        value = self._value
        if isinstance(value, list | dict):
            return _KINDS[isinstance(value, list)][chinese]
        if isinstance(value, float) and not math.isfinite(value):
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
        text = "null" if value is None else text
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_KINDS = {True: ("an array", "数组"), False: ("an object", "对象")}

NUMBER = Text("a number was expected, not {received}", "应为数字，收到 {received}")
WHOLE = Text("a whole number was expected, not {received}", "应为整数，收到 {received}")
RANGE = Text("must lie in {interval}, not {received}", "应在 {interval} 范围内，收到 {received}")
TOO_LARGE = Text("{received} is too large", "数值过大，收到 {received}")
TEXT = Text("a text was expected, not {received}", "应为字符串，收到 {received}")
TEXTS = Text("a list of texts was expected, not {received}", "应为字符串数组，收到 {received}")
TRUTH = Text("true or false was expected, not {received}", "应为 true 或 false，收到 {received}")
CHOICE = Text("one of {choices} was expected, not {received}", "应为 {choices} 之一，收到 {received}")
EMPTY = Text("must not be empty", "不能为空")
LENGTH = Text("takes up to {most} characters, not {count}", "最多 {most} 个字符，收到 {count} 个")
CHARACTERS = Text("{received} has characters that are not allowed", "{received} 含有不允许的字符")
COUNT = Text("takes up to {most} items, not {count}", "最多 {most} 项，收到 {count} 项")
TWICE = Text("names {received} twice", "{received} 重复出现")
DEVICES = Text(
    'numbers of devices such as "0" or "0,1" were expected, not {received}',
    '应为设备编号，例如 "0" 或 "0,1"，收到 {received}',
)
UNKNOWN = Text("there is no such parameter{near}", "未知参数{near}")
REQUIRED = Text("must be given", "必填")
SAME = Text("means the same as {other} but has another value", "与 {other} 含义相同但取值不同")
EXCLUDES = Text("excludes {other}; choose one", "与 {other} 互斥，只能启用一个")
CONTRADICTS = Text("contradicts {other}={value}", "与 {other}={value} 矛盾")
FULL_QUANTIZED = Text(
    "full fine-tuning does not go with quantized weights; use qlora",
    "全量微调 (full) 不能与量化参数同时使用，请改用 qlora",
)
NO_8BIT = Text(
    "{value} has no 8-bit variant; use {choices}, or leave the 8-bit switch out",
    "{value} 没有 8 位变体；请改用 {choices}，或不启用 8 位优化器",
)
_NEAR = Text("; did you mean {name}?", "，是否想写 {name}？")


def near(name: str, known: Iterable[str], language: str) -> str:
    """A question whether a similar known name was meant; empty when there is none."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return _NEAR.say(language, name=found[0]) if found else ""


def received(value: Any, language: str = ENGLISH) -> str:
    """A value as a message shows it."""
    return Received(value).shown(language == CHINESE)


def _joined(value: Any, chinese: bool) -> Any:
    if isinstance(value, Received):
        return value.shown(chinese)
    return ("、" if chinese else ", ").join(value) if isinstance(value, tuple) else value
