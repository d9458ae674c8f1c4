"""Scores of generated answers against expected ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval_service.scoring import texts
from eval_service.scoring.embeddings import Embedder, Vectors
from eval_service.scoring.measurements import Measurement, mean


@dataclass(frozen=True, slots=True)
class Question:
    """What a sample asks, and the answer that is expected."""

    text: str
    expected: str


WORD_SCORES: dict[str, Callable[[str, str], float]] = {
    "coverage": texts.coverage,
    "exact_match": texts.exact_match,
    "token_f1": texts.token_f1,
}


def measure_answers(
    names: Sequence[str], questions: Sequence[Question], answers: Sequence[str], embedder: Embedder | None
) -> dict[str, Measurement]:
    """Those of the named scores that compare answers; embedder is needed for similarity and coherence alone."""
    found = {}
    for name, score in WORD_SCORES.items():
        if name in names:
            pairs = zip(questions, answers, strict=True)
            found[name] = mean(name, [score(answer, question.expected) for question, answer in pairs])
    if embedder is not None and "semantic_similarity" in names:
        cosines = similarities(questions, answers, embedder)
        found["semantic_similarity"] = mean("semantic_similarity", cosines, (-1.0, 1.0))
    if embedder is not None and "coherence" in names:
        found["coherence"] = mean("coherence", coherences(questions, answers, embedder))
    return found


def needs_embedder(names: Sequence[str]) -> bool:
    """Whether a score is among them that compares meanings."""
    return bool({"semantic_similarity", "coherence"} & set(names))


def similarities(questions: Sequence[Question], answers: Sequence[str], embedder: Embedder) -> list[float]:
    """Cosine of the embeddings of each answer and the expected one; 0 where one of them says nothing."""
    pairs = embedder.embed([*answers, *(question.expected for question in questions)])
    generated, expected = np.split(pairs, 2)
    # Rounding takes the cosine of equal texts beyond 1.
    return [float(value) for value in np.clip(np.einsum("ij,ij->i", generated, expected), -1, 1)]


def coherences(questions: Sequence[Question], answers: Sequence[str], embedder: Embedder) -> list[float]:
    """For each answer the mean cosine from the question over its sentences, each with the one before, times the share
    of runs of four words that are no repetition. 0 for an answer without words."""
    chains = [[question.text, *texts.sentences(answer)] for question, answer in zip(questions, answers, strict=True)]
    vectors = embedder.embed([text for chain in chains for text in chain])
    ends = np.cumsum([len(chain) for chain in chains])
    return [
        _chained(vectors[end - len(chain) : end]) * texts.distinct_share(answer)
        for chain, end, answer in zip(chains, ends, answers, strict=True)
    ]


def _chained(vectors: Vectors) -> float:
    if len(vectors) < 2:
        return 0.0
    return float(np.clip(np.einsum("ij,ij->i", vectors[1:], vectors[:-1]), 0, 1).mean())
