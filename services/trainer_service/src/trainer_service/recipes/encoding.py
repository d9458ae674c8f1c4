"""What turns a job's rows into token ids: its tokenizer, and rows that are kept in the cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkit.chat import ChatEncoder
from modelkit.datasets import PRETRAINING, DataCache, FileReport, JsonlDataset, key_of
from modelkit.encoded import RowEncoder
from modelkit.loading import load_tokenizer
from modelkit.tokenised import VERSION, TokenFile, tokenizer_sha256
from trainer_service.recipes.config import Job
from trainer_service.recipes.rows import DocumentRows, EncodedRows, Store, require_template_fits
from workerkit.child.errors import InvalidJob
from workerkit.child.events import EventWriter

SMALL_BYTES = 1 << 18  # less is tokenised faster than looked up
BLOCK_WINDOWS = 64  # windows of a document that stay together where documents are laid end to end


def load_tokenizer_of(job: Job, config: Any) -> Any:
    """The tokenizer that the job names, or the model's own. Raises InvalidModel, InvalidJob."""
    if job.tokenizer_dir is None:
        return load_tokenizer(job.model_dir, config)
    tokenizer: Any = load_tokenizer(job.tokenizer_dir, config)
    known = getattr(config, "vocab_size", None)
    if isinstance(known, int) and len(tokenizer) > known:
        raise InvalidJob(
            f"tokenizer_path: it has {len(tokenizer)} tokens, the model knows {known}; use the model's own"
        )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Encoding:
    """Reads checked files as token ids; a tokenised file is found again by its content.

    joined: documents are laid end to end, so they are cut into long windows only.
    """

    job: Job
    cache: DataCache
    encoder: RowEncoder
    events: EventWriter
    joined: bool = False

    def read(
        self, report: FileReport, dataset: JsonlDataset, chosen: NDArray[np.int64]
    ) -> tuple[EncodedRows, NDArray[np.int64]]:
        """Rows of a file, and the positions of the chosen ones; of texts for pretraining their windows.

        Raises InvalidDataset when the chat template does not fit, OSError.
        """
        if isinstance(self.encoder, ChatEncoder):
            require_template_fits(self.encoder, dataset, report)
        rows = EncodedRows(dataset, self.encoder, self._store(report, dataset), say=self.events.log)
        parameters = self.job.finetune.language_model
        if parameters.objective != PRETRAINING:
            return rows, chosen
        window = parameters.max_seq_length * (BLOCK_WINDOWS if self.joined else 1)
        windows = DocumentRows(rows.fill() or TokenFile.of(rows.blocks()), chosen, window)
        return windows, np.arange(len(windows))

    def _store(self, report: FileReport, dataset: JsonlDataset) -> Store | None:
        if report.size < SMALL_BYTES:
            return None
        tokenizer = tokenizer_sha256(self.job.tokenizer_dir or self.job.model_dir)
        name = key_of(VERSION, report.sha256, report.reading, tokenizer, self.encoder.identity, len(dataset))
        return Store(self.cache, f"tokens-{name}", report)
