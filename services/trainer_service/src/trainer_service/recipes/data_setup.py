"""Checks and reads a job's data, and splits it into what is trained on and what is held out."""

import dataclasses
import shutil
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkit import datasets
from modelkit.attention import isolates
from modelkit.chat import ChatEncoder
from modelkit.datasets import ColumnNames, DataCache, DatasetFiles, DatasetReport, JsonlDataset, Reading
from modelkit.datasets.parts import parts_of
from modelkit.encoders import encoder_for, labels_of
from modelkit.loading import load_config
from trainer_service.recipes.config import Job
from trainer_service.recipes.data import Batches, HeldOut, Layout
from trainer_service.recipes.encoding import Encoding, load_tokenizer_of
from trainer_service.recipes.rows import (
    DocumentRows,
    EncodedRows,
    as_json_lines,
    require_trainable,
    require_valid,
)
from trainer_service.recipes.world import World
from workerkit.child.errors import InvalidJob
from workerkit.child.events import EventWriter

BACKGROUND_DELAY = 3.0  # seconds in which the first steps have the processor to themselves
TEST_FILE = "test.jsonl"


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and this process's share of what is held out, which may be nothing where others have some.

    labels are the names of the classes in the order of their numbers, when classes are learnt.
    """

    rows: EncodedRows
    batches: Batches
    evaluates: bool
    held_out: HeldOut
    tokenizer: Any
    labels: tuple[str, ...] = ()


def prepare_data(job: Job, events: EventWriter, world: World) -> Data:
    """Checks every line of the files, then only what cannot be known from the lines alone."""
    training, parameters = job.finetune.training, job.finetune.language_model
    cache = DataCache(job.cache_dir or job.work_dir / "data-cache", job.cache_bytes)
    report = check_files(job, cache)
    config = load_config(job.model_dir)
    require_length(parameters.max_seq_length, config)
    tokenizer = load_tokenizer_of(job, config)
    encoder = encoder_for(
        report.train,
        tokenizer,
        config,
        max_length=parameters.max_seq_length,
        train_on_prompt=parameters.train_on_prompt,
    )
    if isinstance(encoder, ChatEncoder) and encoder.fallback:
        events.log("the tokenizer has no chat template; a plain one is used and saved with it")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    layout = layout_of(job, config.model_type, pad_id)
    say_what_files_decide(job, events)
    parts = read_parts(Encoding(job, cache, encoder, events, joined=layout.joined), report, leads=world.leads)
    if layout.packing:
        parts.rows.fill()  # every length must be known
    elif parameters.packing:
        events.log(f"{config.model_type} cannot keep the sequences of a row apart: packing has no effect")
    batches = batches_of(job, parts, layout, world)
    evaluates = will_evaluate(training.eval_strategy, len(parts.held_out), events)
    share = parts.held_out[world.rank :: world.size]
    held_out = HeldOut(parts.validation, share, replace(layout, size=training.eval_batch_size))
    return Data(parts.rows, batches, evaluates, held_out, tokenizer, labels_of(report.train))


def require_length(max_seq_length: int, config: Any) -> None:
    """Raises InvalidJob when a model cannot read so many tokens."""
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and max_seq_length > longest:
        raise InvalidJob(f"max_seq_length: the model can read {longest} tokens, not {max_seq_length}")


def say_what_files_decide(job: Job, events: EventWriter) -> None:
    """Says which ratios have no effect, because the data has a file for that."""
    parameters = job.finetune.language_model
    files = (
        ("eval_ratio", parameters.eval_ratio, job.validation_file),
        ("test_ratio", parameters.test_ratio, job.test_file),
    )
    for name, ratio, file in files:
        if ratio and file:
            events.log(f"{name} {ratio:g} has no effect: the rows of {file.name} are used")


def will_evaluate(strategy: str, held_out: int, events: EventWriter) -> bool:
    """Whether there are evaluations; says so when somebody may expect them and there are none."""
    evaluates = strategy != "NO" and held_out > 0
    if strategy not in ("NO", "AUTO") and not evaluates:
        events.log("there are no validation rows, so nothing is evaluated; give a valid.jsonl or an eval_ratio")
    elif held_out and not evaluates:
        events.log(
            "there are validation rows, but eval_strategy is no, so nothing is evaluated; set it to steps or epoch"
        )
    return evaluates


def check_files(job: Job, cache: DataCache) -> DatasetReport:
    """A check of every line of a job's files. Raises InvalidDataset with all that is wrong, OSError."""
    parameters = job.finetune.language_model
    named = ColumnNames(**dataclasses.asdict(job.finetune.columns))
    reading = Reading(parameters.objective, named, parameters.labels)
    report = datasets.validate(DatasetFiles(job.train_file, job.validation_file, job.test_file, reading), cache)
    require_valid(report)
    return report


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows and the positions in them that are trained on; others, perhaps of the same file, that are evaluated on."""

    rows: EncodedRows
    order: NDArray[np.int64]
    validation: EncodedRows
    held_out: NDArray[np.int64]


def read_parts(encoding: Encoding, report: DatasetReport, *, leads: bool) -> Parts:
    """Splits the data. The process that leads keeps the rows for a test, and tokenises the others in the background.

    Raises InvalidDataset when nothing can be learnt from the rows, OSError.
    """
    job = encoding.job
    parameters = job.finetune.language_model
    found = parts_of(
        report,
        max_samples=parameters.max_samples,
        eval_ratio=parameters.eval_ratio,
        test_ratio=parameters.test_ratio,
        seed=job.finetune.training.seed,
    )
    rows, order = encoding.read(found.train.report, found.train.rows, found.train.positions)
    if not isinstance(rows, DocumentRows):
        require_trainable(rows, order, parameters.max_seq_length)
    others = found.validation
    validation, held_out = encoding.read(others.report, others.rows, others.positions)
    if leads:
        if not report.test:
            keep_test_rows(job, found.test.rows, found.test.positions)
        rows.prepare(BACKGROUND_DELAY)
    return Parts(rows, order, validation, held_out)


def batches_of(job: Job, parts: Parts, layout: Layout, world: World) -> Batches:
    """The rows that are trained on, in batches."""
    training = job.finetune.training
    return Batches(
        parts.rows,
        parts.order,
        layout,
        seed=training.seed,
        accumulation=training.gradient_accumulation_steps,
        shuffle=job.finetune.language_model.shuffle,
        pin_memory=training.dataloader_pin_memory and world.device.type == "cuda",
    )


def keep_test_rows(job: Job, dataset: JsonlDataset, positions: NDArray[np.int64]) -> None:
    """Writes the rows that are kept for a test beside the job. Raises OSError."""
    if len(positions):
        with (job.work_dir / TEST_FILE).open("wb") as file:
            file.writelines(as_json_lines(dataset, positions))


def add_test_rows(job: Job) -> None:
    """Puts the rows that were kept for a test beside the finished model. Raises OSError."""
    if (job.work_dir / TEST_FILE).is_file():
        shutil.copyfile(job.work_dir / TEST_FILE, job.output_dir / TEST_FILE)


def layout_of(job: Job, architecture: str, pad_id: int) -> Layout:
    """How sequences share a forward pass. Only models that keep them apart can read several in one row."""
    parameters = job.finetune.language_model
    joined = parameters.packing and parameters.objective == "PRETRAINING"
    apart = isolates(architecture)
    return Layout(
        size=job.finetune.training.per_device_train_batch_size,
        max_length=parameters.max_seq_length,
        pad_id=pad_id,
        end_to_end=apart and (parameters.padding_free or parameters.packing),
        packing=joined or (parameters.packing and apart and parameters.objective == "SUPERVISED"),
        joined=joined,
    )
