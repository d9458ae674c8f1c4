"""Texts from workers, cut to what every database stores and every event carries."""

WORD_LENGTH = 200
MESSAGE_LENGTH = 10_000
PROBLEM_LENGTH = 2_000
PATH_LENGTH = 4_096
PROBLEMS = 100


def clean(text: str, length: int) -> str:
    """The beginning of a text, without NUL, which PostgreSQL refuses."""
    return text[:length].replace("\0", "\ufffd")
