"""Checks and reads a job's data, and splits it into what is trained on and what is held out."""

from dataclasses import dataclass, replace
from typing import Any

from modelkit import datasets
from modelkit.chat import ChatEncoder
from modelkit.datasets import DatasetFiles
from modelkit.loading import load_config, load_tokenizer
from trainer_service.recipes.attention import isolates
from trainer_service.recipes.config import Job
from trainer_service.recipes.data import Batches, HeldOut, Layout
from trainer_service.recipes.errors import InvalidJob
from trainer_service.recipes.events import EventWriter
from trainer_service.recipes.model_setup import stop_ids
from trainer_service.recipes.rows import EncodedRows, require_template_fits, require_trainable, require_valid, split
from trainer_service.recipes.world import World


@dataclass(frozen=True, slots=True)
class Data:
    """What is trained on, and this process's share of what is held out, which may be nothing where others have some."""

    rows: EncodedRows
    batches: Batches
    evaluates: bool
    held_out: HeldOut
    tokenizer: Any
    labels: tuple[str, ...] = ()


def prepare_data(job: Job, events: EventWriter, world: World) -> Data:
    """Checks every line of the files, then only what cannot be known from the lines alone."""
    training, parameters = job.finetune.training, job.finetune.language_model
    report = datasets.validate(DatasetFiles(job.train_file, job.validation_file))
    require_valid(report)
    config = load_config(job.model_dir)
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and parameters.max_seq_length > longest:
        raise InvalidJob(f"max_seq_length: the model can read {longest} tokens, not {parameters.max_seq_length}")
    tokenizer: Any = load_tokenizer(job.model_dir, config)
    encoder = ChatEncoder(tokenizer, max_length=parameters.max_seq_length, stop_ids=stop_ids(config))
    if encoder.fallback:
        events.log("the tokenizer has no chat template; a plain one is used and saved with it")
    conversations = datasets.JsonlDataset(report.train, max_rows=parameters.max_samples)
    require_template_fits(encoder, conversations, report.train)
    rows = EncodedRows(conversations, encoder)
    ratio = 0.0 if report.validation else parameters.eval_ratio
    order, held_out = split(len(rows), ratio, training.seed)
    require_trainable(rows, order, parameters.max_seq_length)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    layout = layout_of(job, config.model_type, pad_id)
    batches = Batches(
        rows,
        order,
        layout,
        seed=training.seed,
        accumulation=training.gradient_accumulation_steps,
        shuffle=parameters.shuffle,
        pin_memory=training.dataloader_pin_memory and world.device.type == "cuda",
    )
    validation = EncodedRows(conversations, encoder)
    if report.validation:
        others = datasets.JsonlDataset(report.validation)
        require_template_fits(encoder, others, report.validation)
        validation, held_out = EncodedRows(others, encoder), split(len(others), 0.0, training.seed)[0]
    evaluates = training.eval_strategy != "NO" and len(held_out) > 0
    if training.eval_strategy != "NO" and not evaluates:
        events.log("there are no validation rows, so nothing is evaluated; give a valid.jsonl or an eval_ratio")
    share = held_out[world.rank :: world.size]
    held_out_rows = HeldOut(validation, share, replace(layout, size=training.eval_batch_size))
    return Data(rows, batches, evaluates, held_out_rows, tokenizer)


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
