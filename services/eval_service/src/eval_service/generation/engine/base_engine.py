"""A base model run by transformers, with its adapters and the conversations that it remembers."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from eval_service.generation.engine.adapters import Variant, Variants
from eval_service.generation.engine.engines import Prompt
from eval_service.generation.engine.prompts import Prompts, end_tokens, opening_of
from eval_service.generation.memory import CONTEXT_NAMES
from modelkit.datasets import Message
from modelkit.ending import template_source
from modelkit.loading import load_config, load_model, load_tokenizer, quieten

CHUNK = 256
LEAD = 8


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_format(stored: str, device: torch.device) -> torch.dtype:
    """The format to compute in: that of the stored weights where the device is quick with it, else float32."""
    if device.type == "cuda":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(stored, torch.float32)
    quick = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if stored == "bfloat16" and quick else torch.float32


@dataclass(slots=True)
class Voice:
    """How a variant reads conversations: its own tokenizer and template. opening is what the template lets answers
    begin with."""

    tokenizer: Any
    prompts: Prompts
    ends: frozenset[int]
    opening: str = field(init=False)

    def __post_init__(self) -> None:
        self.opening = opening_of(self.prompts, self.encode, self.decode)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; those that a tokenizer puts around one only where no template writes them."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=self.prompts.continues)
        if self.prompts.continues and tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens.pop()
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(slots=True)
class _Memory:
    """Keys and values of tokens; of the prompt whole chunks were read, the rest is not read again as it was."""

    variant: Variant
    tokens: list[int]
    cache: DynamicCache
    whole: int = 0


@dataclass(slots=True)
class _Session:
    engine: "BaseEngine"
    memory: _Memory
    known: int = field(init=False)

    def __post_init__(self) -> None:
        self.known = len(self.memory.tokens)

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.engine.forward(self.memory, tokens)

    def close(self) -> None:
        self.engine.keep(self.memory)


class BaseEngine:
    """Loads a model directory. Raises ModelkitError, OSError, torch.OutOfMemoryError.

    What it remembers of earlier conversations are whole chunks of their prompts, read in the same pieces as they would
    be read anew: so an answer does not depend on what was asked before. Conversations in the making and remembered ones
    together have at most at_once times context tokens, which is what the service counts for them.
    """

    def __init__(self, directory: Path, *, stored: str, context: int, at_once: int) -> None:
        quieten()
        self._device = best_device()
        self._config = load_config(directory)
        dtype = compute_format(stored, self._device)
        self._model: Any = load_model(directory, dtype=dtype, config=self._config, device=self._device)
        self._model.eval()
        self._variants = Variants(self._model)
        self._directory = directory
        self._voices: dict[str, Voice] = {}
        self._remembered: list[_Memory] = []  # the newest first
        self._open = 0
        takes_columns = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._options = {"logits_to_keep": 1} if takes_columns else {}
        self.at_once, self.chunk = at_once, CHUNK
        self.context = min(context, next((n for n in map(self._length, CONTEXT_NAMES) if n), context))
        self.vocabulary = int(self._model.get_output_embeddings().weight.shape[0])

    def add(self, variant: str, directory: Path) -> int:
        """Brings an adapter and its tokenizer into memory."""
        size = self._variants.add(variant, directory)
        self._voices[variant] = self._voice(directory)
        return size

    def remove(self, variant: str) -> None:
        """Forgets an adapter and what it remembers."""
        gone = self._variants.find(variant)
        self._remembered = [memory for memory in self._remembered if memory.variant is not gone]
        self._variants.remove(variant)
        self._voices.pop(variant, None)

    def prompt(self, variant: str, messages: Sequence[Message]) -> Prompt:
        """The tokens of a conversation as the variant's own template writes it.

        Raises InvalidModel when the model itself is asked and has no tokenizer.
        """
        if not variant and not self._voices.get(variant):
            self._voices[variant] = self._voice(self._directory)
        voice = self._voices[variant]
        tokens = voice.encode(voice.prompts.text(messages))
        lead = tokens[-LEAD:] if voice.prompts.continues else []
        return Prompt(tokens, voice.ends, lead, voice.decode, voice.opening)

    def begin(self, variant: str, tokens: Sequence[int]) -> _Session:
        """Takes up the conversation that is remembered best, if any; others are forgotten to make room for it."""
        self._open += 1
        memory = self._taken_up(variant, tokens)
        self._forget_oldest()
        return _Session(self, memory)

    def _taken_up(self, variant: str, tokens: Sequence[int]) -> _Memory:
        chosen = self._variants.find(variant)
        fitting = [(self._shared(memory, tokens), memory) for memory in self._remembered if memory.variant is chosen]
        shared, memory = max(fitting, key=lambda pair: pair[0], default=(0, None))
        if memory is None or not shared:
            return _Memory(chosen, [], DynamicCache(config=self._model.config))
        self._remembered = [other for other in self._remembered if other is not memory]
        _crop(memory, shared)
        return memory

    @torch.inference_mode()
    def forward(self, memory: _Memory, tokens: Sequence[int]) -> torch.Tensor:
        """Reads tokens on top of what is remembered; the scores of the next one."""
        self._variants.activate(memory.variant)
        if len(tokens) == CHUNK and memory.whole == len(memory.tokens):
            memory.whole += CHUNK
        inputs = torch.tensor([list(tokens)], device=self._device)
        output = self._model(input_ids=inputs, past_key_values=memory.cache, use_cache=True, **self._options)
        memory.tokens += tokens
        scores: torch.Tensor = output.logits[0, -1].float().cpu()
        return scores

    def keep(self, memory: _Memory) -> None:
        """Remembers whole chunks of a conversation's prompt, as long as there is room."""
        self._open -= 1
        if memory.whole and _can_go_back(memory.cache):
            _crop(memory, memory.whole)
            self._remembered.insert(0, memory)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        room = max(0, self.at_once - self._open) * self.context
        while sum(len(memory.tokens) for memory in self._remembered) > room:
            self._remembered.pop()

    @staticmethod
    def _shared(memory: _Memory, tokens: Sequence[int]) -> int:
        """Tokens of whole chunks with which both begin; one token is always left to read."""
        most = min(memory.whole, (len(tokens) - 1) // CHUNK * CHUNK)
        same = next((at for at in range(most) if memory.tokens[at] != tokens[at]), most)
        return same // CHUNK * CHUNK

    def _voice(self, directory: Path) -> Voice:
        tokenizer: Any = load_tokenizer(directory, self._config)
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        voice = Voice(tokenizer, Prompts(template_source(tokenizer) or "", tokens), frozenset())
        added = frozenset(tokenizer.added_tokens_decoder)
        configured = [config.eos_token_id for config in (self._config, self._model.generation_config)]
        voice.ends = end_tokens(
            [*configured, tokenizer.eos_token_id],
            voice.prompts,
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            added.__contains__,
        )
        return voice

    def _length(self, name: str) -> int:
        value = getattr(self._config, name, None)
        return value if isinstance(value, int) else 0


def _can_go_back(cache: DynamicCache) -> bool:
    """Whether the last tokens can be forgotten; a layer with a sliding window that is full has lost what was before."""
    layers: list[Any] = [layer for layer in cache.layers if getattr(layer, "sliding_window", None)]
    return cache.is_croppable and all(layer.get_seq_length() < layer.sliding_window for layer in layers)


def _crop(memory: _Memory, length: int) -> None:
    """Keeps the first tokens alone, and gives back the memory of the others."""
    removed = len(memory.tokens) - length
    if removed:
        memory.cache.crop(-removed)
        layers: list[Any] = memory.cache.layers
        for layer in layers:
            if layer.is_initialized:  # a part of a tensor would keep all of it in memory
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
    del memory.tokens[length:]
    memory.whole = length
