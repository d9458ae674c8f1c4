"""Tokenizers of scratch models, trained on a corpus in the form that each family has."""

from collections.abc import Iterable
from typing import Any

import orjson

from modelkit.chatglm.tokenizer import merges_of
from modelkit.errors import InvalidModel, Problem
from modelkit.scratch.families import Family

BYTES = 256
SPACE = "\u2581"  # how sentencepiece writes a space
LINE_CHARACTERS = 4096


def train_tokenizer(kind: Family, vocab_size: int, texts: Iterable[str]) -> Any:
    """A tokenizer with so many tokens at most, the special ones and one for each byte included.

    Raises InvalidModel when the texts give it nothing to learn.
    """
    import transformers

    backend = _byte_level(kind, vocab_size, texts) if kind.split_pattern else _byte_fallback(kind, vocab_size, texts)
    if backend.get_vocab_size() <= BYTES + len(kind.special_tokens):
        raise InvalidModel(Problem("corpus", "the corpus has too little text to train a tokenizer on"))
    special = {"bos_token": kind.bos, "eos_token": kind.eos, "pad_token": kind.pad, "unk_token": kind.unk}
    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=backend,
        **{name: token for name, token in special.items() if token},
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = kind.chat_template
    return tokenizer


def _byte_level(kind: Family, vocab_size: int, texts: Iterable[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    if kind.normalizes:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(kind.split_pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special(kind),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _byte_fallback(kind: Family, vocab_size: int, texts: Iterable[str]) -> Any:
    """Half of what the special tokens and bytes leave is for characters, the rest for what they make together.

    Like tokenizers that come from sentencepiece, it merges any two tokens that make a third one.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    room = vocab_size - BYTES
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        special_tokens=_special(kind),
        limit_alphabet=max(1, (room - len(kind.special_tokens)) // 2),
        show_progress=False,
    )
    learner.train_from_iterator((text[:LINE_CHARACTERS] for text in texts), trainer)
    learnt = orjson.loads(learner.to_str())["model"]
    words = sorted(learnt["vocab"], key=learnt["vocab"].get)[len(kind.special_tokens) :]
    tokens = [*kind.special_tokens, *(f"<0x{byte:02X}>" for byte in range(BYTES)), *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(learnt["merges"])))}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of([(token, -rank) for token, rank in ranks.items()], vocabulary),
            unk_token=kind.unk,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.add_special_tokens(_special(kind))
    first = [normalizers.Prepend(SPACE)] if kind.prefix_space else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    last = [decoders.Strip(" ", 1, 0)] if kind.prefix_space else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    return backend


def _special(kind: Family) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(token, special=True, normalized=False) for token in kind.special_tokens]
