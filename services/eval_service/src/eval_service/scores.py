"""The scores of checkpoints: names that requests and reports share, and what each means."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoreDescription:
    """A score of one checkpoint on one set of samples."""

    name: str
    description: str
    higher_is_better: bool = True


SCORES = (
    ScoreDescription(
        "perplexity",
        "exp of the mean cross-entropy per token of the expected answers, from 1 up: how surprised the model is.",
        higher_is_better=False,
    ),
    ScoreDescription(
        "semantic_similarity",
        "Mean cosine similarity of sentence embeddings of generated and expected answers, -1 to 1.",
    ),
    ScoreDescription(
        "coherence",
        "How well the sentences of a generated answer follow from the question and from each other, 0 to 1.",
    ),
    ScoreDescription("coverage", "Share of the content words of the expected answer that were generated, 0 to 1."),
    ScoreDescription("exact_match", "Share of samples whose normalised answer equals the expected one, 0 to 1."),
    ScoreDescription("token_f1", "Mean F1 of the words that generated and expected answers have in common, 0 to 1."),
    ScoreDescription("accuracy", "Text classification: share of samples put into their class, 0 to 1."),
    ScoreDescription("f1", "Text classification: F1 averaged over the classes, 0 to 1."),
    ScoreDescription(
        "confusion",
        "Text classification: share of samples put into a wrong class, 0 to 1; the report holds the whole matrix of "
        "true against predicted classes.",
        higher_is_better=False,
    ),
)
