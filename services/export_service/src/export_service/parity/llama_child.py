"""The process that runs a GGUF file: one JSON object in, token numbers out, readings in an npz file."""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

import llama_cpp
import numpy as np

from modelkit.apart import lower_limit

SET_PARENT_DEATH_SIGNAL = 1
BATCH = 64


class Model:
    """A GGUF file in memory, read exactly: keys and values in float32, no fused attention."""

    def __init__(self, path: str, adapter: str | None, longest: int) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit("the file cannot be loaded")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = longest + 8, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit("the model cannot be run")
        if adapter:
            self._put_on(adapter)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def _put_on(self, adapter: str) -> None:
        loaded = llama_cpp.llama_adapter_lora_init(self.model, adapter.encode())
        if not loaded:
            raise SystemExit("the adapter cannot be loaded")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self.context, adapters, 1, scales):
            raise SystemExit("the adapter does not fit the model")

    def close(self) -> None:
        """Frees everything."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokens(self, text: str) -> list[int]:
        """Token numbers of a text in which special tokens are written out."""
        raw = text.encode()
        room = len(raw) + 8
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocabulary, raw, len(raw), found, room, False, True)
        return list(found[: max(count, 0)])

    def logits(self, sequence: list[int]) -> Any:
        """Logits after each token, (tokens, vocabulary)."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        rows = np.empty((len(sequence), self.size), np.float32)
        for start in range(0, len(sequence), BATCH):
            part = sequence[start : start + BATCH]
            for at, token in enumerate(part):
                self.batch.token[at], self.batch.pos[at] = token, start + at
                self.batch.n_seq_id[at], self.batch.seq_id[at][0], self.batch.logits[at] = 1, 0, 1
            self.batch.n_tokens = len(part)
            if llama_cpp.llama_decode(self.context, self.batch):
                raise SystemExit("llama.cpp could not compute a batch")
            for at in range(len(part)):
                row = llama_cpp.llama_get_logits_ith(self.context, at)
                rows[start + at] = np.ctypeslib.as_array(row, shape=(self.size,))
        return rows


def main() -> int:
    """Answers the object on standard input."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    job = json.load(sys.stdin)
    lower_limit(resource.RLIMIT_AS, job["memory"])
    model = Model(job["model"], job["adapter"], max(map(len, job["sequences"]), default=1))
    losses, kept = [], []
    for sequence in job["sequences"]:
        logits = model.logits(sequence)[:-1]
        largest = logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits - largest, dtype=np.float64).sum(axis=1)) + largest[:, 0]
        losses.append(sums - logits[np.arange(len(logits)), sequence[1:]])
        kept.append(logits[-job["kept"] :].copy())
    tokens = [model.tokens(text) for text in job["texts"]]
    model.close()
    np.savez(job["answer"], loss=np.concatenate(losses).mean(), logits=np.stack(kept))
    json.dump(tokens, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
