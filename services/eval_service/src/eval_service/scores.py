"""The scores of checkpoints: names that requests and reports share, what each means, and what it weighs in the total.

docs/evaluation.md gives the formulas.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ANSWERS, TOKENS, CLASSES = "answers", "tokens", "classes"
# What can be measured where this is learnt: probabilities of tokens, generated answers, or classes.
MEASURABLE = {
    "SUPERVISED": (TOKENS, ANSWERS),
    "PRETRAINING": (TOKENS,),
    "CLASSIFICATION": (CLASSES,),
}
SUITE_PREFIX = "suite:"


@dataclass(frozen=True, slots=True)
class ScoreDescription:
    """A score of one checkpoint on one set of samples.

    needs is what it is computed from; weight is its share in the total, before shares are scaled to add up to 1.
    """

    name: str
    name_zh: str
    description: str
    needs: str
    weight: float
    higher_is_better: bool = True


SCORES = (
    ScoreDescription(
        "perplexity",
        "困惑度",
        "exp of the mean cross-entropy per token of the expected answers, from 1 up: how surprised the model is.",
        TOKENS,
        weight=0.25,
        higher_is_better=False,
    ),
    ScoreDescription(
        "semantic_similarity",
        "语义相似度",
        "Mean cosine similarity of sentence embeddings of generated and expected answers, -1 to 1.",
        ANSWERS,
        weight=0.3,
    ),
    ScoreDescription(
        "coherence",
        "连贯性",
        "How well the sentences of a generated answer follow from the question and from each other, 0 to 1.",
        ANSWERS,
        weight=0.15,
    ),
    ScoreDescription(
        "coverage",
        "覆盖率",
        "Share of the content words of the expected answer that were generated, 0 to 1.",
        ANSWERS,
        weight=0.15,
    ),
    ScoreDescription(
        "exact_match",
        "完全匹配",
        "Share of samples whose normalised answer equals the expected one, 0 to 1.",
        ANSWERS,
        weight=0.0,
    ),
    ScoreDescription(
        "token_f1",
        "词元 F1",
        "Mean F1 of the words that generated and expected answers have in common, 0 to 1.",
        ANSWERS,
        weight=0.15,
    ),
    ScoreDescription(
        "accuracy",
        "准确率",
        "Text classification: share of samples put into their class, 0 to 1.",
        CLASSES,
        weight=0.5,
    ),
    ScoreDescription(
        "f1", "宏平均 F1", "Text classification: F1 averaged over the classes, 0 to 1.", CLASSES, weight=0.5
    ),
    ScoreDescription(
        "confusion",
        "混淆率",
        "Text classification: share of samples put into a wrong class, 0 to 1; the report holds the whole matrix of "
        "true against predicted classes.",
        CLASSES,
        weight=0.0,
        higher_is_better=False,
    ),
)
BY_NAME = {score.name: score for score in SCORES}
# A total, or a score from 0 to 1, of at least so much is called so.
BANDS = ((0.8, "excellent", "优秀"), (0.6, "good", "良好"), (0.4, "fair", "一般"), (0.0, "poor", "较差"))


def band(value: float) -> tuple[str, str]:
    """What a number from 0 to 1 is called, in English and in Chinese."""
    return next((name, name_zh) for least, name, name_zh in BANDS if value >= least or not least)


def measurable(objective: str) -> list[str]:
    """Names of the scores that fit what a task has learnt: SUPERVISED, PRETRAINING or CLASSIFICATION."""
    return [score.name for score in SCORES if score.needs in MEASURABLE[objective]]


def shares(names: Iterable[str], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each score in the total, adding up to 1; scores without weight are left out.

    weights take the place of the documented ones. Empty when nothing is left.
    """
    wanted = {name: weights.get(name, BY_NAME[name].weight) for name in names if name in BY_NAME}
    # What is better when it is lower has no place in a sum, except perplexity, which has a form from 0 to 1.
    weighing = {name: weight for name, weight in wanted.items() if weight > 0 and name != "confusion"}
    whole = sum(weighing.values())
    return {name: weight / whole for name, weight in weighing.items()}
