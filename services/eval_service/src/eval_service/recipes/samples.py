"""The rows that are scored: those that the training held out, or those of a dataset of the user's own."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval_service.generation.engine.errors import ConversationRefused
from eval_service.generation.engine.prompts import Prompts
from eval_service.recipes.job import TEST, VALIDATION, Job
from eval_service.scoring.answers import Question
from eval_service.scoring.perplexity import windows
from modelkit import datasets
from modelkit.chat import ChatEncoder
from modelkit.datasets import ColumnNames, DataCache, DatasetFiles, DatasetReport, Reading
from modelkit.datasets.parts import Part, parts_of, whole
from modelkit.encoded import Encoded, RowEncoder
from modelkit.encoders import encoder_for
from modelkit.errors import InvalidDataset, Problem
from modelkit.identity import rows_sha256
from modelkit.template_fit import template_problems
from workerkit.child.errors import RecipeError
from workerkit.child.events import WARNING, EventWriter

STREAM = 1 << 33  # keeps this choice apart from all else that a seed decides
NAMES = {TEST: "test", VALIDATION: "validation"}


class NothingHeldOut(RecipeError):
    """There are no rows to score on."""

    reason = "NO_HELD_OUT_ROWS"


@dataclass(frozen=True, slots=True)
class Samples:
    """The rows that are scored, in the order of the data.

    sequences are their tokens with labels, each of the sample belongs[i]; questions and prompts (tokens) are there when
    answers can be generated, classes when rows have one. split says what they are, rows how many there were.
    """

    positions: list[int]
    split: str
    rows: int
    sequences: list[Encoded]
    belongs: list[int]
    questions: list[Question]
    prompts: list[list[int]]
    classes: list[int]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads samples as the training has read its rows."""

    job: Job
    tokenizer: Any
    config: Any
    labels: tuple[str, ...]
    events: EventWriter

    def read(self) -> tuple[Samples, RowEncoder]:
        """The samples, and what encoded them. Raises RecipeError, ModelkitError or OSError."""
        report = self._check()
        name, part = self._part(report)
        chosen = self._choose(part)
        rows: list[Any] = [part.rows[position] for position in chosen]
        encoder = encoder_for(part.report, self.tokenizer, self.config, max_length=self.job.learnt.max_seq_length)
        if isinstance(encoder, ChatEncoder) and (found := template_problems(encoder, part.rows, part.report)):
            raise InvalidDataset([Problem("dataset", text) for text in found], reason="INVALID_CHAT_TEMPLATE")
        encoded = encoder.encode(rows)
        pieces = [windows(row, self.job.learnt.max_seq_length) for row in encoded]
        answers = [_question(row) for row in rows] if isinstance(encoder, ChatEncoder) else []
        prompts = [self._prompt(encoder, row) for row in rows] if isinstance(encoder, ChatEncoder) else []
        samples = Samples(
            positions=chosen,
            split=name,
            rows=len(part),
            sequences=[piece for cut in pieces for piece in cut],
            belongs=[sample for sample, cut in enumerate(pieces) for _ in cut],
            questions=answers,
            prompts=prompts,
            classes=[row.label for row in encoded],
            texts=[_text(row) for row in rows],
        )
        return samples, encoder

    def _check(self) -> DatasetReport:
        job = self.job
        reading = Reading(job.learnt.objective, ColumnNames(**job.learnt.columns), self.labels or job.learnt.labels)
        cache = DataCache(job.cache_dir or job.work_dir / "data-cache", job.cache_bytes)
        files = DatasetFiles(job.train_file, job.validation_file, job.test_file, reading)
        report = datasets.validate(files, cache)
        if not report.valid:
            raise InvalidDataset([Problem("dataset", str(problem)) for problem in report.problems])
        known = job.dataset_sha256
        if not job.own_dataset and known and rows_sha256(job.train_file, job.validation_file) != known:
            self.events.log(
                "the task's data has changed since it was trained: rows that count as held out here may have been "
                "trained on; upload the data, whose versions never change, to be sure",
                WARNING,
            )
        return report

    def _part(self, report: DatasetReport) -> tuple[str, Part]:
        """The rows of the split that is asked for, and its name."""
        job, learnt = self.job, self.job.learnt
        if job.own_dataset:
            files = {TEST: report.test, VALIDATION: report.validation}
            parts = {split: whole(file) for split, file in files.items() if file is not None}
        else:
            found = parts_of(
                report,
                max_samples=learnt.max_samples,
                eval_ratio=learnt.eval_ratio,
                test_ratio=learnt.test_ratio,
                seed=learnt.seed,
            )
            parts = {TEST: found.test, VALIDATION: found.validation}
        wanted = (TEST, VALIDATION) if job.choice.split not in NAMES else (job.choice.split,)
        for split in wanted:
            if split in parts and len(parts[split]):
                return NAMES[split], parts[split]
        if job.own_dataset and job.choice.split not in NAMES:
            return "dataset", whole(report.train)
        names = " or ".join(NAMES[split] for split in wanted)
        raise NothingHeldOut(
            f"there are no {names} rows to score on: name a dataset for the evaluation, or train with an eval_ratio or "
            "test_ratio above 0 or a validation file"
        )

    def _choose(self, part: Part) -> list[int]:
        size = self.job.choice.size(len(part))
        random = np.random.default_rng((self.job.choice.seed, STREAM))
        return sorted(int(position) for position in random.choice(part.positions, size, replace=False))

    def _prompt(self, encoder: ChatEncoder, row: Any) -> list[int]:
        """The tokens before the answer that is asked for: as many of the last as leave room for the answer."""
        prompts = Prompts(encoder.template.source, encoder.template.special_tokens)
        try:
            text = prompts.text(_before(row))
        except ConversationRefused as error:
            raise InvalidDataset(Problem("dataset", str(error)), reason="INVALID_CHAT_TEMPLATE") from error
        tokens: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        context = context_of(self.config)
        # However long answers may be, the half of what a model reads is left to the question.
        return tokens if context is None else tokens[-max(context - self.job.answering.max_tokens, context // 2, 1) :]


def context_of(config: Any) -> int | None:
    """Tokens that a model reads at most; None where its configuration does not say."""
    longest = getattr(config, "max_position_embeddings", None)
    return int(longest) if longest else None


def _before(row: Any) -> Any:
    """The turns before the last reply."""
    last = max(place for place, turn in enumerate(row) if turn["role"] == "assistant")
    return row[:last]


def _question(row: Any) -> Question:
    turns = _before(row)
    asked = next((turn["content"] for turn in reversed(turns) if turn["role"] != "assistant"), "")
    return Question(asked, row[len(turns)]["content"])


def _text(row: Any) -> str:
    """A row as a report shows it."""
    if isinstance(row, str):
        return row
    if isinstance(row, list):
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in _before(row))
    return str(row.text)
