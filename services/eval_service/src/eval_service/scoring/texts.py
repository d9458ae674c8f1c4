"""Scores that compare the words of a generated and an expected answer.

Words are runs of letters and digits in the form that NFKC gives them, in lower case; a character of Chinese, Japanese
or Korean is a word of its own.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
WORD = re.compile(rf"[{WIDE}]|[^\W_{WIDE}]+(?:['’][^\W_{WIDE}]+)*")
SENTENCE = re.compile(r"[^.!?。！？；;\n]*(?:\.(?=\S)[^.!?。！？；;\n]*)*[.!?。！？；;\n]*")
# Words that carry no content: of English whole words, of Chinese single characters.
ENGLISH = """
a an the and or but if then than as of at by for from in into on to with without about is are was were be been being am
do does did have has had will would can could shall should may might must not no nor so such that this these those it
its he she they them his her their we us our you your i me my who whom which what there here when where how why
"""
CHINESE = "的了着过和与及或而但在是有也都就还又很把被让给对从向到为以于之其这那此个们我你他她它吗呢吧啊呀嘛"
FUNCTION_WORDS = frozenset([*ENGLISH.split(), *CHINESE])


def words(text: str) -> list[str]:
    """The words of a text."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def content_words(text: str) -> set[str]:
    """The words that carry content; all of them where none does."""
    found = set(words(text))
    return found - FUNCTION_WORDS or found


def sentences(text: str) -> list[str]:
    """The sentences of a text that have words."""
    return [part.strip() for part in SENTENCE.findall(text) if WORD.search(part)]


def exact_match(generated: str, expected: str) -> float:
    """1 when the words are the same in the same order; where there are none, the texts without white space."""
    answer, wanted = words(generated), words(expected)
    if not answer and not wanted:
        return float("".join(generated.split()) == "".join(expected.split()))
    return float(answer == wanted)


def token_f1(generated: str, expected: str) -> float:
    """Harmonic mean of the share of generated words that are expected and of expected words that were generated.

    As for SQuAD (arXiv:1606.05250), with words as above; two answers without words are equal.
    """
    answer, wanted = words(generated), words(expected)
    if not answer or not wanted:
        return float(answer == wanted)
    common = (Counter(answer) & Counter(wanted)).total()
    return 2 * common / (len(answer) + len(wanted))


def coverage(generated: str, expected: str) -> float:
    """Share of the content words of the expected answer that were generated; 1 where none is expected."""
    wanted = content_words(expected)
    return len(wanted & set(words(generated))) / len(wanted) if wanted else 1.0


def distinct_share(text: str, length: int = 4) -> float:
    """Share of a text's runs of so many words that repeat no earlier one; 1 for a text that is shorter."""
    found: Sequence[str] = words(text)
    runs = [tuple(found[at : at + length]) for at in range(len(found) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
