"""One export from a verified checkpoint and its base model to checked files in the output directory."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from export_service import gguf, parity
from export_service.job import Job
from export_service.names import MERGED_STEM, adapter_archive, adapter_gguf, model_stem
from export_service.recipes.archive import write_archive
from export_service.recipes.progress import ExportStopped, Progress
from export_service.recipes.texts import prompts, training_texts
from export_service.results import CheckResult, write_result
from modelkit.identity import require_same_base
from modelkit.merging import MergeStopped, merge
from workerkit.child.errors import RecipeError
from workerkit.child.events import WARNING, EventWriter
from workerkit.child.stopping import StopRequest

# Shares of the whole after which files are made, and checked; what is left then is their hashes and their way to where
# they are kept.
MADE, CHECKED = 0.7, 0.95


class ParityFailed(RecipeError):
    """What was exported does not compute what was trained."""

    reason = "PARITY_FAILED"


def export(directory: Path, events: EventWriter, stop: StopRequest) -> None:
    """Does the job in a directory; ends with a done or a stopped event.

    Raises RecipeError, ModelkitError, OSError or MemoryError.
    """
    job = Job.load(directory)
    progress = Progress(events, stop)
    try:
        compare_base(job, events)
        checks = MAKERS[job.format](job, progress)
        judge(job, checks, events)
        progress.tell(CHECKED, "hashing")
        result = write_result(job.output_dir, checks)
    except (ExportStopped, MergeStopped):
        events.log("the export was stopped; nothing of it is kept")
        events.stopped(step=0)
        return
    for artifact in result.artifacts:
        events.log(f"{artifact.name}: {artifact.size} bytes, SHA-256 {artifact.sha256}")
    events.done(path=job.output_dir, step=job.step)


def compare_base(job: Job, events: EventWriter) -> None:
    """Raises InvalidModel when an adapter was trained on other files than its base model has now."""
    if job.adapter is None or job.base is None:
        return
    if require_same_base(job.adapter, job.base, name=job.base_name):
        events.log(f"the base model {job.base_name} is the one that the adapter was trained on")
    else:
        events.log("the adapter does not note what it was trained on; its base model is not compared", WARNING)


def make_archive(job: Job, progress: Progress) -> list[CheckResult]:
    """The adapter's files in a ZIP."""
    job.output_dir.mkdir()
    assert job.adapter is not None
    return [
        write_archive(job.adapter, job.output_dir / adapter_archive(job.source_task_id), progress.part(0.0, CHECKED))
    ]


def make_merged(job: Job, progress: Progress) -> list[CheckResult]:
    """Base model and adapter as one model; of a full training the model without what training leaves beside it."""
    part, merged = progress.part(0.0, MADE), job.folder / MERGED_STEM
    merge(
        job.foundation,
        job.adapter,
        merged,
        progress=lambda share: part(share, "merging"),
        is_stopped=progress.is_stopped,
    )
    checks = compare(job, progress, job.adapter, merged=merged)
    merged.rename(job.output_dir)
    return checks


def make_gguf(job: Job, progress: Progress) -> list[CheckResult]:
    """GGUF files of the model with its adapter."""
    return write_gguf(job, progress, job.adapter, MERGED_STEM)


def make_gguf_base(job: Job, progress: Progress) -> list[CheckResult]:
    """GGUF files of the base model alone."""
    return write_gguf(job, progress, None, model_stem(job.base_name))


def write_gguf(job: Job, progress: Progress, adapter: Path | None, stem: str) -> list[CheckResult]:
    """GGUF files straight from the base model and an adapter."""
    part = progress.part(0.0, MADE)
    part(0.0, "reading the training rows")
    wants_text = any(gguf.FILE_TYPES[name].importance for name in job.quantizations if name in gguf.FILE_TYPES)
    texts = training_texts(job.rows, gguf.tokenizer_of(job.foundation, adapter)) if wants_text else []
    written = gguf.write(
        gguf.GgufJob(
            base=job.foundation,
            adapter=adapter,
            target_dir=job.output_dir,
            stem=stem,
            types=list(job.quantizations),
            importance_rows=texts or None,
            modelfile=job.modelfile,
        ),
        part,
    )
    return compare(job, progress, adapter, files=[path for path in written if path.suffix == ".gguf"])


def make_gguf_adapter(job: Job, progress: Progress) -> list[CheckResult]:
    """The adapter alone as GGUF, to be loaded beside a GGUF of the base model."""
    job.output_dir.mkdir()
    assert job.adapter is not None
    target = job.output_dir / adapter_gguf(job.step)
    progress.tell(0.0, "writing the adapter")
    gguf.write_adapter(job.foundation, job.adapter, target)
    return compare(job, progress, job.adapter, files=[target])


def compare(
    job: Job,
    progress: Progress,
    adapter: Path | None,
    *,
    merged: Path | None = None,
    files: Sequence[Path] = (),
) -> list[CheckResult]:
    """What the parity gate says of files, or of a merged model, that were made from an adapter."""
    part = progress.part(MADE, CHECKED)
    checks = parity.check(job.foundation, adapter, merged, list(files), prompts(job.rows), progress=part)
    return [CheckResult(**dataclasses.asdict(check)) for check in checks]


def judge(job: Job, checks: Sequence[CheckResult], events: EventWriter) -> None:
    """Tells what was measured. Raises ParityFailed naming each check that failed and by how much."""
    for check in checks:
        events.log(f"{'passed' if check.passed else 'FAILED'}: {check.text}")
    if checks:
        events.metrics(job.step, {f"{check.name}/{check.artifact}": check.value for check in checks})
    failed = [check.text for check in checks if not check.passed]
    if failed:
        words = "1 check" if len(failed) == 1 else f"{len(failed)} checks"
        raise ParityFailed(f"the export does not compute what was trained, {words} failed: {'; '.join(failed)}", failed)


MAKERS: dict[str, Callable[[Job, Progress], list[CheckResult]]] = {
    "adapter": make_archive,
    "merged": make_merged,
    "gguf": make_gguf,
    "gguf_base": make_gguf_base,
    "gguf_adapter": make_gguf_adapter,
}
