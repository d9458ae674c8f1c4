"""The functions of libllama that a GGUF model needs, with its pointers freed for certain."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

MOST_META_BYTES = 1 << 20
OWN_SEQUENCE = 0


class LlamaError(Exception):
    """libllama could not do what was asked."""


class LlamaModel:
    """A model file in memory with one context of so many tokens at most. Raises LlamaError when it cannot be loaded."""

    def __init__(self, path: Path, *, context: int, batch: int) -> None:
        _be_quiet()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise LlamaError(f"{path.name} cannot be loaded; it is damaged, or of a kind that llama.cpp does not know")
        self.context = min(context, llama_cpp.llama_model_n_ctx_train(self._model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = self.context, batch, batch
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise LlamaError(f"there is not enough memory for a context of {self.context} tokens")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)

    def close(self) -> None:
        """Gives the memory back."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def meta(self, key: str) -> str:
        """An entry of the file's metadata, empty without it."""
        buffer = ctypes.create_string_buffer(MOST_META_BYTES)
        size = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if size >= 0 else ""

    def read(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Goes on with tokens, as many as a batch has at most; the scores of the next one."""
        values = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(values, len(tokens)))
        if status != 0:
            raise LlamaError(f"llama.cpp could not go on with the conversation (status {status})")
        scores = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(scores, shape=(self.vocabulary,)).copy()

    def forget(self, first: int) -> None:
        """Forgets what was read from a place on."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, OWN_SEQUENCE, first, -1)

    def tokens_of(self, text: str, *, add_special: bool) -> list[int]:
        """A text as tokens; special tokens that are written out in it count as such."""
        raw = text.encode()
        room = len(raw) + 8
        values = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), values, room, add_special, True)
        if count < 0:
            raise LlamaError(f"a text of {len(raw)} bytes has more tokens than bytes")
        return list(values[:count])

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out; halves of characters become replacement characters."""
        values = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 32 * len(tokens) + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_detokenize(self._vocabulary, values, len(tokens), buffer, room, False, False)
            if size >= 0:
                return buffer.raw[:size].decode(errors="replace")
            room = -size

    def name_of(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for a negative number, which stands for none."""
        raw: bytes | None = llama_cpp.llama_vocab_get_text(self._vocabulary, token) if token >= 0 else None
        return raw.decode(errors="replace") if raw else ""

    @property
    def bounds(self) -> tuple[int, int]:
        """The tokens that begin and end a text; negative where there is none."""
        return llama_cpp.llama_vocab_bos(self._vocabulary), llama_cpp.llama_vocab_eos(self._vocabulary)

    def ends(self) -> list[int]:
        """Every token that ends an answer."""
        return [n for n in range(self.vocabulary) if llama_cpp.llama_vocab_is_eog(self._vocabulary, n)]

    def is_special(self, token: int) -> bool:
        """Whether a token is no text."""
        return bool(llama_cpp.llama_vocab_is_control(self._vocabulary, token))


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _drop(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Drops what libllama tells of its loading."""


def _be_quiet() -> None:
    llama_cpp.llama_log_set(_drop, ctypes.c_void_p(0))
