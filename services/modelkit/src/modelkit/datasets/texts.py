"""Plain text cut into documents: at blank lines, or, in a file without any, at each line.

Prose is written in paragraphs with blank lines between them, corpora with a document a line; this tells them apart.
"""

from collections.abc import Iterator
from pathlib import Path

from modelkit.datasets.lines import MAX_LINE_BYTES, read_lines


def read_documents(path: Path) -> Iterator[bytes]:
    """Yields each document. Raises OSError.

    A document longer than the longest line allowed is cut there.
    """
    by_line = not _has_paragraphs(path)
    lines: list[bytes] = []
    size = 0
    for _, line in read_lines(path):
        text = b"" if line is None else line.rstrip()
        if lines and (not text or by_line or size + len(text) > MAX_LINE_BYTES):
            yield b"\n".join(lines)
            lines, size = [], 0
        if text:
            lines.append(text)
            size += len(text)
    if lines:
        yield b"\n".join(lines)


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two that are not."""
    begun = blank = False
    for _, line in read_lines(path):
        if line is None or line.strip():
            if blank:
                return True
            begun = True
        else:
            blank = begun
    return False
