"""Tokens as text while they come: whole characters alone, and nothing of a text that ends the answer."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
# No tokenizer needs more tokens than this before the characters that they make are settled.
LONGEST_PENDING = 64


class TextStream:
    """Turns tokens into text as they come. decode makes text of whole sequences, and what a token becomes may depend on
    those before it; so it is always asked about a few of them, and only what is new is handed out.

    context are tokens before the answer, which decide whether it begins with a space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(context)
        self._told = len(self._tokens)  # tokens whose text was handed out
        self._start = 0  # tokens from here on are decoded together

    def add(self, token: int) -> str:
        """What the token adds; empty while a character is not whole."""
        self._tokens.append(token)
        return self._news(final=False)

    def end(self) -> str:
        """What is left; an unfinished character is dropped."""
        return self._news(final=True)

    def _news(self, final: bool) -> str:
        before = self._decode(self._tokens[self._start : self._told])
        text = self._decode(self._tokens[self._start :])
        unfinished = text.endswith(REPLACEMENT)
        if unfinished and final:
            return text[len(before) :].rstrip(REPLACEMENT)
        if len(text) <= len(before) or (unfinished and len(self._tokens) - self._told < LONGEST_PENDING):
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return text[len(before) :]


class Opening:
    """Takes away with what an answer begins because the template has taught it so: the whole of that, or as much white
    space as an answer shares with it."""

    def __init__(self, taught: str) -> None:
        self._taught = taught
        self._held = ""

    def add(self, text: str) -> str:
        """What is certain not to belong to it."""
        if not self._taught:
            return text
        self._held += text
        return "" if self._taught.startswith(self._held) else self.end()

    def end(self) -> str:
        """What was held back, at the end of an answer."""
        text, taught = self._held, self._taught
        pairs = enumerate(zip(text, taught, strict=False))
        shared = next((at for at, (one, other) in pairs if one != other), min(len(text), len(taught)))
        self._held = self._taught = ""
        return text[shared:] if shared == len(taught) or taught[:shared].isspace() else text


class StopTexts:
    """Lets text through until one of some texts appears in it, of which nothing is let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What is certain not to belong to a stop text."""
        if not self._stops:
            return text
        self._held += text
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._release(min(ends))
        return self._release(len(self._held) - self._beginning())

    def end(self) -> str:
        """What was held back, at the end of an answer."""
        return "" if self.found else self._release(len(self._held))

    def _beginning(self) -> int:
        """Characters at the end with which a stop text may begin."""
        longest = max(map(len, self._stops)) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in lengths if self._begins(self._held[-size:])), 0)

    def _begins(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)

    def _release(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        return text
