"""From what a request means to what a process loads: files fetched, the base model found and checked."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from eval_service.generation.contents import Content, Form, content_of
from eval_service.generation.files import StoredFiles, content_key
from eval_service.generation.gguf_metadata import read_metadata
from eval_service.generation.memory import PROCESS_BYTES, needed_by, needed_by_gguf
from eval_service.generation.models import Base, Limits, require_memory
from eval_service.generation.progress import Progress
from eval_service.generation.sources import Choice, Stored, classifies
from eval_service.generation.threads import Threads
from modelkit.base_models import BaseModels, ResolvedModel, describe
from modelkit.checkpoints import FileEntry
from modelkit.errors import ModelkitError
from modelkit.identity import require_same_base
from modelkit.inspection import inspect
from servicekit.errors import FailedPrecondition

TRANSFORMERS, GGUF = "transformers", "gguf"
WEIGHTS = (".safetensors", ".gguf")
CLASSIFIER = "ForSequenceClassification"  # how the classes of transformers' text classifiers end
CHECKS_AT_ONCE, CONVERSIONS_AT_ONCE = 4, 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """A base model to load, and the adapter that answers on it; variant is empty where the base itself does."""

    base: Base
    variant: str = ""
    adapter: Path | None = None


class Preparation:
    """Makes choices ready to be loaded."""

    def __init__(self, files: StoredFiles, base_models: BaseModels, limits: Limits) -> None:
        self._files = files
        self._base_models = base_models
        self._limits = limits
        self._checks = Threads(CHECKS_AT_ONCE)
        self._conversions = Threads(CONVERSIONS_AT_ONCE)

    @contextlib.asynccontextmanager
    async def ready(self, choice: Choice, progress: Progress) -> AsyncIterator[Prepared]:
        """What to load for a choice; its files stay as long as the context.

        Raises FailedPrecondition when something of it is missing, damaged or has changed, ResourceExhausted when it is
        too large or too much is prepared already, and what the store raises.
        """
        async with contextlib.AsyncExitStack() as held:
            with _explained():
                prepared = await self._prepare(choice, progress, held)
            yield prepared

    async def _prepare(self, choice: Choice, progress: Progress, held: contextlib.AsyncExitStack) -> Prepared:
        if choice.stored is None:
            return Prepared((await self._base(choice, progress, held))[0])
        content, files = await self._content(choice.stored, choice.artifact)
        folder = await held.enter_async_context(self._files.held(choice.stored, files, progress))
        if content.form is Form.GGUF:
            return Prepared(await self._gguf(content, files, folder))
        if content.form is Form.WHOLE:
            return Prepared(await self._whole(folder / content.path, content_key(files), choice.task_id))
        base, directory = await self._base(choice, progress, held)
        progress.enter("checking base model")
        await self._checks.run(require_same_base, folder, directory, name=choice.base_model)
        return Prepared(base, content_key(files), folder)

    async def _content(self, stored: Stored, artifact: str = "") -> tuple[Content, list[FileEntry]]:
        manifest = await self._files.manifest(stored)
        content = content_of([file.path for file in manifest.files], artifact)
        files = [file for file in manifest.files if file.path in content.files]
        weights = sum(file.size for file in files if file.path.endswith(WEIGHTS))
        require_memory("the stored model", weights + PROCESS_BYTES, self._limits)  # before anything is fetched
        return content, files

    async def _base(self, choice: Choice, progress: Progress, held: contextlib.AsyncExitStack) -> tuple[Base, Path]:
        """The base model of a fine-tuning task and its directory."""
        if choice.base_stored is not None:
            if not choice.base_stored.prefix:
                text = f"base_model: the output of {choice.base_model} is no longer stored"
                raise FailedPrecondition(text, reason="BASE_MODEL_INVALID")
            content, files = await self._content(choice.base_stored)
            if content.form is not Form.WHOLE:
                text = f"base_model: the output of {choice.base_model} is not a whole model"
                raise FailedPrecondition(text, reason="BASE_MODEL_INVALID")
            folder = await held.enter_async_context(self._files.held(choice.base_stored, files, progress))
            whole = await self._whole(folder / content.path, content_key(files), choice.task_id)
            return whole, folder / content.path
        progress.enter("finding base model")
        model = await self._checks.run(self._base_models.resolve, choice.base_model, own_tokenizer=choice.own_tokenizer)
        threads = self._checks
        if model.needs_conversion:
            progress.enter("converting base model")
            threads = self._conversions  # whoever needs none does not wait for those of others
        directory = await threads.run(self._base_models.ready, model)
        if self._base_models.conversions is not None:
            held.enter_context(self._base_models.conversions.holding(directory))
        return self._loadable(model, directory, f"{directory}:{model.sha256}", choice.base_model), directory

    async def _whole(self, directory: Path, key: str, task_id: str) -> Base:
        """A model that was stored whole, for a task. FailedPrecondition when it is a classifier."""
        found = await self._checks.run(inspect, directory)
        model = describe(directory.name, directory, found, field="model")
        if any(str(name).endswith(CLASSIFIER) for name in model.config.get("architectures") or ()):
            raise classifies(task_id)
        return self._loadable(model, directory, key, f"the {model.family} model of the task")

    def _loadable(self, model: ResolvedModel, directory: Path, key: str, name: str) -> Base:
        limits = self._limits
        job = {
            "kind": TRANSFORMERS,
            "path": str(directory),
            "stored": model.dtype,
            "context": limits.context,
            "at_once": limits.at_once,
        }
        return Base(key, name, job, needed_by(model, limits.context, limits.at_once))

    async def _gguf(self, content: Content, files: list[FileEntry], folder: Path) -> Base:
        path = folder / content.path
        job = {"kind": GGUF, "path": str(path), "context": self._limits.context}
        metadata = await self._checks.run(read_metadata, path)
        needed = needed_by_gguf(sum(file.size for file in files), metadata, self._limits.context)
        return Base(content_key(files), path.name, job, needed)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Errors of models and paths as errors that a caller sees."""
    try:
        yield
    except ModelkitError as error:
        raise FailedPrecondition(str(error), reason=error.reason) from error
    except OSError as error:
        raise FailedPrecondition(f"the model's files cannot be read: {error}", reason="MODEL_UNREADABLE") from error
