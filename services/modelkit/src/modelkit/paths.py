"""Paths that users name, resolved beneath allowed roots."""

import os
from collections.abc import Iterable
from pathlib import Path

from modelkit.errors import PathNotAllowed, Problem


class AllowedRoots:
    """The directories beneath which models, datasets and outputs may lie.

    Symbolic links are followed before a path is judged, so a link cannot lead out of the roots. What lies in a
    private path is outside, although a root contains it. What lies in an own directory, where the platform itself keeps
    copies, is inside although a private path contains that; users cannot name paths there.
    """

    def __init__(
        self,
        roots: Iterable[str | os.PathLike[str]],
        *,
        private: Iterable[str | os.PathLike[str]] = (),
        own: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.roots = tuple(dict.fromkeys(Path(os.path.realpath(root)) for root in roots))
        self.private = tuple(dict.fromkeys(Path(os.path.realpath(path)) for path in private))
        self.own = tuple(dict.fromkeys(Path(os.path.realpath(path)) for path in own))

    def __str__(self) -> str:
        return ", ".join(str(root) for root in (*self.roots, *self.own)) or "none"

    def contains(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path, its links followed, lies in a root and in nothing private, or in an own directory."""
        real = Path(os.path.realpath(path))
        return any(map(real.is_relative_to, self.own)) or self._named(real)

    def _named(self, real: Path) -> bool:
        """Whether users may name a real path."""
        return self._beneath(real) and not any(map(real.is_relative_to, self.private))

    def _beneath(self, real: Path) -> bool:
        """Whether a real path lies in a root, be it private or not."""
        return any(map(real.is_relative_to, self.roots))

    def resolve(self, path: str, *, field: str, must_exist: bool = True) -> Path:
        """The real path of a user's path. A relative one is looked up beneath each root in turn.

        Raises PathNotAllowed for a malformed path, one outside the roots, or, with must_exist, one that is missing.
        Whether something exists outside the roots is not revealed.
        """
        if not path.strip() or "\0" in path:
            raise PathNotAllowed(Problem(field, f"{path!r} is not a path"))
        candidates = [Path(path)] if Path(path).is_absolute() else [root / path for root in self.roots]
        found = [real for real in map(self._real, candidates) if real]
        allowed = [real for real in found if self._named(real)]
        if not allowed and any(map(self._beneath, found)):
            message = f"{path!r} is where the platform's own files lie, which cannot be named; use another path"
            raise PathNotAllowed(Problem(field, message))
        if not allowed:
            message = f"{path!r} is outside the allowed directories ({self}); use a path beneath one of them"
            raise PathNotAllowed(Problem(field, message))
        for real in allowed:
            if os.path.exists(real):  # noqa: PTH110 - unlike Path.exists it never raises
                return real
        if must_exist:
            raise PathNotAllowed(Problem(field, f"{path!r} does not exist"), reason="PATH_NOT_FOUND")
        return allowed[0]

    def target(self, path: str, *, field: str) -> Path:
        """The real path of a directory that a user wants written; it need not exist.

        Raises PathNotAllowed as resolve does, for an allowed directory itself, and where nothing can be written.
        """
        target = self.resolve(path, field=field, must_exist=False)
        if target in self.roots:
            message = f"{target} is an allowed directory itself; name a directory in it"
            raise PathNotAllowed(Problem(field, message))
        if problem := _unwritable(target):
            raise PathNotAllowed(Problem(field, problem), reason="PATH_NOT_WRITABLE")
        return target

    @staticmethod
    def _real(path: Path) -> Path | None:
        try:
            return Path(os.path.realpath(path))
        except (OSError, ValueError):
            return None


def _unwritable(target: Path) -> str:
    """Why nothing can be written at a path; empty when it can."""
    ancestor = target
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        return f"{ancestor} is not a directory"
    parent = target.parent if ancestor == target else ancestor
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} cannot be written to"
    return ""
