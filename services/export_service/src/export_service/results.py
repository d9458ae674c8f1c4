"""What an export has made: its files and the checks that they passed, in export.json beside them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkit.checkpoints import sha256_of
from servicekit.errors import NotFound

RESULT = "export.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file: name relative to the output with forward slashes, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A comparison with what was trained: what was measured and what is allowed; text says the same in words."""

    artifact: str
    name: str
    value: float
    limit: float
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """Files and checks of one export."""

    artifacts: tuple[Artifact, ...] = ()
    checks: tuple[CheckResult, ...] = ()

    def artifact(self, name: str) -> Artifact:
        """A file by its name. Raises NotFound naming those that there are."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        known = ", ".join(artifact.name for artifact in self.artifacts)
        raise NotFound(f"the export has no file {name!r}; it has {known}")

    def to_json(self) -> bytes:
        """JSON in which infinities stay what they are."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Result":
        """Reads export.json. Raises ValueError."""
        try:
            content: dict[str, Any] = json.loads(raw)
            artifacts = tuple(Artifact(**item) for item in content["artifacts"])
            return cls(artifacts, tuple(CheckResult(**item) for item in content["checks"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{RESULT} is damaged: {error!r}") from None


def write_result(directory: Path, checks: Sequence[CheckResult]) -> Result:
    """Hashes the files of a finished export and writes export.json beside them. Raises OSError."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    artifacts = [
        Artifact(path.relative_to(directory).as_posix(), path.stat().st_size, sha256_of(path)) for path in files
    ]
    result = Result(tuple(artifacts), tuple(checks))
    (directory / RESULT).write_bytes(result.to_json())
    return result
