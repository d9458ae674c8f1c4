"""The job of an export as its child reads it: job.json in plain types."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from workerkit.child.errors import InvalidJob

FILE = "job.json"


@dataclass(frozen=True, slots=True)
class Job:
    """An export on this machine.

    format is "adapter", "merged", "gguf", "gguf_adapter" or "gguf_base". base is the base model; model_dir a verified
    checkpoint or final model, None where the base model alone is exported; an adapter lies in it when is_adapter, else
    a whole model, and base is then not needed. rows are training rows as messages with role and content, of plain text
    in the role "text". step is that of the checkpoint, 0 of the final model; base_name what people call the base model.
    """

    folder: Path
    format: str
    task_id: str
    source_task_id: str
    step: int
    base: Path | None
    model_dir: Path | None
    is_adapter: bool
    base_name: str
    quantizations: tuple[str, ...] = ()
    modelfile: bool = True
    rows: tuple[list[dict[str, str]], ...] = ()

    @property
    def output_dir(self) -> Path:
        """Where the child leaves what it made."""
        return self.folder / "output"

    @property
    def adapter(self) -> Path | None:
        """The adapter, None for a whole model."""
        return self.model_dir if self.is_adapter else None

    @property
    def foundation(self) -> Path:
        """What an adapter is put on: the base model, or the whole model that was trained."""
        found = self.base if self.is_adapter or self.model_dir is None else self.model_dir
        if found is None:
            raise InvalidJob(f"{FILE} names no base model")
        return found

    def write(self) -> None:
        """Writes job.json. Raises OSError."""
        content = orjson.dumps(dataclasses.asdict(self), default=str, option=orjson.OPT_INDENT_2)
        (self.folder / FILE).write_bytes(content)

    @classmethod
    def load(cls, directory: Path) -> "Job":
        """Reads job.json. Raises InvalidJob."""
        try:
            content: dict[str, Any] = orjson.loads((directory / FILE).read_bytes())
            paths = {name: Path(content[name]) if content[name] else None for name in ("base", "model_dir")}
            lists = {name: tuple(content[name]) for name in ("quantizations", "rows")}
            return cls(**{**content, **paths, **lists, "folder": directory})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidJob(f"{directory}/{FILE} cannot be read: {error!r}") from None
