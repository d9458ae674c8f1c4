"""What a stored directory holds that can write text, told from the names in its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from servicekit.errors import FailedPrecondition, NotFound

ADAPTER_CONFIG, CONFIG, GGUF = "adapter_config.json", "config.json", ".gguf"
WANTED_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
ADAPTER_GGUF = "-lora.gguf"


class Form(StrEnum):
    """How a model is stored."""

    ADAPTER = "adapter"
    WHOLE = "whole"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Content:
    """A model in a stored directory: the folder or file that holds it, and the files to fetch, by their paths."""

    form: Form
    path: str
    files: tuple[str, ...]


def content_of(paths: Sequence[str], artifact: str = "") -> Content:
    """The model among the files of a manifest; artifact names a GGUF file.

    Raises NotFound when there is none of that name, FailedPrecondition when there is no model, or no single one.
    """
    models = sorted(path for path in paths if path.endswith(GGUF) and not path.endswith(ADAPTER_GGUF))
    names = ", ".join(PurePosixPath(path).name for path in models) or "none"
    if artifact:
        for path in models:
            if artifact in (path, PurePosixPath(path).name):
                return Content(Form.GGUF, path, (path,))
        raise NotFound(f"there is no GGUF model {artifact!r}; there are: {names}", reason="ARTIFACT_NOT_FOUND")
    if ADAPTER_CONFIG in paths:
        return Content(Form.ADAPTER, "", _directly_in("", paths))
    if (folder := _model_folder(paths)) is not None:
        return Content(Form.WHOLE, folder, _directly_in(folder, paths))
    if len(models) == 1:
        return Content(Form.GGUF, models[0], (models[0],))
    if models:
        raise FailedPrecondition(
            f"artifact: there are several GGUF models: {names}; name one", reason="ARTIFACT_MISSING"
        )
    raise FailedPrecondition(
        "there is no model among the stored files that could write text; name the fine-tuning task, or an export of a "
        "merged model or a GGUF",
        reason="NO_MODEL_STORED",
    )


def _model_folder(paths: Sequence[str]) -> str | None:
    """The folder with a whole model, the outermost of several; "" for the directory itself."""
    folders = [path.removesuffix(CONFIG).rstrip("/") for path in paths if PurePosixPath(path).name == CONFIG]
    weights = {str(PurePosixPath(path).parent) for path in paths if path.endswith(".safetensors")}
    whole = [folder for folder in folders if (folder or ".") in weights]
    return min(whole, key=lambda folder: (folder.count("/"), folder), default=None)


def _directly_in(folder: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Weights, configuration and tokenizer in a folder; what training needs to go on is left where it is."""
    parent = folder or "."
    return tuple(path for path in paths if str(PurePosixPath(path).parent) == parent and path.endswith(WANTED_SUFFIXES))
