"""Words, sentences, and the scores that compare them (M15)."""

import pytest

from eval_service.scoring import texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World! It's 3.", ["hello", "world", "it's", "3"]),
        ("今天weather很好", ["今", "天", "weather", "很", "好"]),
        ("ＡＢＣ naïve_x", ["abc", "naïve", "x"]),
        ("... !", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert texts.words(text) == words


def test_sentences_end_where_people_end_them() -> None:
    assert texts.sentences("Pi is 3.14. Yes! 好的。再见\n\nend") == ["Pi is 3.14.", "Yes!", "好的。", "再见", "end"]
    assert texts.sentences("  ... ") == []


@pytest.mark.parametrize(
    ("generated", "expected", "exact", "f1", "covered"),
    [
        ("The answer is 42.", "the answer is 42", 1.0, 1.0, 1.0),
        ("red blue", "red green", 0.0, 0.5, 0.5),
        ("红色", "红花", 0.0, 0.5, 0.5),
        ("", "something", 0.0, 0.0, 0.0),
        ("", "", 1.0, 1.0, 1.0),
        ("red red red", "red", 0.0, 0.5, 1.0),
        ("?", "!", 0.0, 1.0, 1.0),
    ],
)
def test_scores_of_words(generated: str, expected: str, exact: float, f1: float, covered: float) -> None:
    assert texts.exact_match(generated, expected) == exact
    assert texts.token_f1(generated, expected) == pytest.approx(f1)
    assert texts.coverage(generated, expected) == pytest.approx(covered)


def test_function_words_do_not_count_as_covered() -> None:
    assert texts.coverage("the and of a", "the cat of the house") == 0.0
    assert texts.coverage("的了在", "猫的家") == 0.0
    assert texts.coverage("the", "the") == 1.0  # nothing else is expected


def test_repetition_is_seen() -> None:
    assert texts.distinct_share("a b c d e f") == 1.0
    assert texts.distinct_share("go on and on " * 20) < 0.1
    assert texts.distinct_share("short") == 1.0
