"""Text comes in whole characters with the right spaces, and never a part of a stop text."""

from pathlib import Path
from typing import Any

import pytest

from eval_service.generation.engine.text import REPLACEMENT, StopTexts, TextStream
from modelkit.loading import load_tokenizer

SENTENCE = "Hello,  wörld — 你好 👋🏽!\n\tdef f(x): return x  # done "


def decoder(tokenizer: Any) -> Any:
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", ["llama", "llama2", "qwen2"])
def test_pieces_make_the_whole_and_none_has_half_a_character(models: dict[str, Path], family: str) -> None:
    tokenizer: Any = load_tokenizer(models[family])
    tokens = tokenizer.encode(SENTENCE, add_special_tokens=False)
    stream = TextStream(decoder(tokenizer))
    pieces = [*map(stream.add, tokens), stream.end()]
    assert "".join(pieces) == decoder(tokenizer)(tokens) == SENTENCE
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 20, "the text did not come in pieces"


def test_a_text_goes_on_where_its_context_ends(models: dict[str, Path]) -> None:
    tokenizer: Any = load_tokenizer(models["llama2"])
    lead, tokens = tokenizer.encode("the lock", add_special_tokens=False), tokenizer.encode("x waits now")[2:]
    stream = TextStream(decoder(tokenizer), lead)
    assert "".join([*map(stream.add, tokens), stream.end()]).startswith(" waits")


def test_an_unfinished_character_at_the_end_is_dropped(models: dict[str, Path]) -> None:
    tokenizer: Any = load_tokenizer(models["qwen2"])
    tokens = tokenizer.encode("ok 𝄞", add_special_tokens=False)[:-1]
    stream = TextStream(decoder(tokenizer))
    assert "".join([*map(stream.add, tokens), stream.end()]) == "ok "


@pytest.mark.parametrize(
    ("stops", "pieces", "expected", "found"),
    [
        ([], ["a", "b"], "ab", False),
        (["END"], ["say E", "N", "D and more"], "say ", True),
        (["END"], ["say E", "N", "ough"], "say ENough", False),
        (["END"], ["say EN"], "say EN", False),
        (["###", "\n\n"], ["one\n", "\ntwo ###"], "one", True),
        (["aab"], ["a", "a", "a", "b", "c"], "a", True),
    ],
)
def test_stop_texts_across_pieces(stops: list[str], pieces: list[str], expected: str, found: bool) -> None:
    stop, told = StopTexts(stops), ""
    for piece in pieces:
        told += stop.add(piece)
        if stop.found:
            break
    assert told + stop.end() == expected
    assert stop.found is found
