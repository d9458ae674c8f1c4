"""What is compared, and how far an exported form may be from what was trained; see docs/export-parity.md."""

import math
from dataclasses import dataclass

LOGITS, GREEDY, PERPLEXITY, TEMPLATE, WEIGHTS = "logits", "greedy_tokens", "perplexity", "template", "weights"

BOUNDLESS = 1e9  # a difference without bounds; infinity has no place in JSON


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison of an exported file or directory with what was trained; text says the same for people."""

    artifact: str
    name: str
    value: float
    limit: float
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """logits: root mean square of the difference over that of the reference, means taken away. perplexity: difference
    of its logarithm, over that logarithm where it is more than 1. greedy: share of greedy tokens that may be others."""

    logits: float
    perplexity: float
    greedy: float = 1.0


FORMS = {
    "F32": Limits(0.005, 0.002, 0.0),
    "F16": Limits(0.02, 0.01, 0.0),
    "BF16": Limits(0.06, 0.03, 0.0),
    "Q8_0": Limits(0.1, 0.04),
    "Q6_K": Limits(0.2, 0.08),
    "Q5_K_M": Limits(0.35, 0.12),
    "Q5_K_S": Limits(0.35, 0.12),
    "Q5_0": Limits(0.4, 0.15),
    "Q5_1": Limits(0.4, 0.15),
    "Q4_K_M": Limits(0.6, 0.25),
    "Q4_K_S": Limits(0.6, 0.25),
    "IQ4_NL": Limits(0.65, 0.3),
    "IQ4_XS": Limits(0.65, 0.3),
    "Q4_0": Limits(0.7, 0.35),
    "Q4_1": Limits(0.7, 0.35),
    "Q3_K_L": Limits(0.9, 0.6),
    "Q3_K_M": Limits(0.95, 0.7),
    "Q3_K_S": Limits(1.0, 0.8),
    "IQ3_M": Limits(1.0, 0.8),
    "IQ3_S": Limits(1.05, 0.9),
    "Q2_K": Limits(1.3, 1.5),
    "IQ2_M": Limits(1.2, 1.8),
    "IQ2_S": Limits(1.25, 2.0),
    "IQ1_M": Limits(1.4, 3.5),
    "IQ1_S": Limits(1.4, 4.0),
}
# Root mean square of the difference over that of the weights, by the type of a tensor.
WEIGHT_LIMITS = {
    "F32": 1e-6,
    "F16": 0.001,
    "BF16": 0.004,
    "Q8_0": 0.015,
    "Q6_K": 0.04,
    "Q5_K": 0.07,
    "Q5_0": 0.08,
    "Q5_1": 0.08,
    "Q4_K": 0.14,
    "Q4_0": 0.16,
    "Q4_1": 0.16,
    "IQ4_NL": 0.15,
    "IQ4_XS": 0.15,
    "Q3_K": 0.28,
    "IQ3_S": 0.35,
    "IQ3_XXS": 0.45,
    "Q2_K": 0.5,
    "IQ2_S": 0.6,
    "IQ2_XS": 0.6,
    "IQ2_XXS": 0.65,
    "IQ1_M": 0.8,
    "IQ1_S": 0.8,
}


def made(artifact: str, name: str, value: float, limit: float, what: str) -> Check:
    """The check of a value that must not exceed a limit; one that is no number counts as BOUNDLESS."""
    value = value if math.isfinite(value) else BOUNDLESS
    passed = value <= limit
    words = "within" if passed else "beyond"
    return Check(artifact, name, value, limit, passed, f"{artifact}: {what} {value:.4g}, {words} the limit {limit:.4g}")
