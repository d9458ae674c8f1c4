"""The tokenizer of ChatGLM or GLM-4 as a tokenizer.json, with a chat template that writes conversations its way.

The token that starts a text is called "sop" by the original, which would be found within words like "sophisticated";
here it is "<sop>", and "eop" is "<eop>". Their numbers are the same.
"""

from pathlib import Path
from typing import Any

from modelkit.chatglm.byte_level import GLM4_TEMPLATE, byte_level_backend
from modelkit.chatglm.config import SPECIAL_TOKENS
from modelkit.chatglm.pieces import count_pieces, read_bounded

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2
CHATGLM3_TEMPLATE = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- '\\n ' + message['content'] }}{%- endgeneration %}
    {%- else %}
        {{- '\\n ' + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
CHATGLM2_TEMPLATE = """\
{{- '[gMASK]<sop>' }}
{%- set round = namespace(number=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] }}{%- endgeneration %}
        {{- '' if loop.last else '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {%- set round.number = round.number + 1 %}
        {{- '[Round ' ~ round.number ~ ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}
    {%- else %}
        {{- message['content'] + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {2: CHATGLM2_TEMPLATE, 3: CHATGLM3_TEMPLATE, 4: GLM4_TEMPLATE}


def convert_tokenizer(source: Path, target: Path, *, generation: int, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template. Raises ValueError, OSError."""
    from transformers import PreTrainedTokenizerFast

    backend = byte_level_backend(source) if generation == 4 else _sentencepiece_backend(source)
    _begin_texts(backend)
    names = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    if generation == 4:
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=backend,
        **names,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = TEMPLATES[generation]
    tokenizer.save_pretrained(target)


def _sentencepiece_backend(source: Path) -> Any:
    """A tokenizer with the pieces of a sentencepiece model and the special tokens after them."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken

    count_pieces(source)  # a message takes a hundred times as much memory as a piece of no length takes in the file
    messages: Any = sentencepiece_model_pb2
    model = messages.ModelProto.FromString(read_bounded(source))
    backend = _backend(model)
    pieces = list(model.pieces)
    control = [piece.piece for piece in pieces if piece.type in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.add_tokens([AddedToken(piece.piece, normalized=False) for piece in pieces if piece.type == USER_DEFINED])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if backend.token_to_id(SPECIAL_TOKENS[0]) != len(pieces):
        raise ValueError(f"{source} already has a piece with the name of a special token")
    return backend


def _backend(model: Any) -> Any:
    """A tokenizer with the model's pieces, normalisation and way back to text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    pieces, spec = list(model.pieces), model.normalizer_spec
    falls_back = any(piece.type == BYTE for piece in pieces)
    if model.trainer_spec.model_type == BPE:
        vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
        algorithm: Any = models.BPE(
            vocab=vocabulary,
            merges=merges_of([(piece.piece, piece.score) for piece in pieces if piece.type == NORMAL], vocabulary),
            unk_token=pieces[model.trainer_spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    elif model.trainer_spec.model_type == UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        algorithm = models.Unigram(scored, unk_id=model.trainer_spec.unk_id, byte_fallback=falls_back)
    else:
        raise ValueError("its sentencepiece model is neither of the kind BPE nor unigram")
    backend = Tokenizer(algorithm)
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    first = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    return backend


def merges_of(scored: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that a sentencepiece BPE model means: of two neighbours, those that make the best piece go first."""
    merges = []
    for piece, score in scored:
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [split for split in splits if split[0] in vocabulary and split[1] in vocabulary]
        known.sort(key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
        merges += [(score, split) for split in known]
    merges.sort(key=lambda merge: -merge[0])
    return [split for _, split in merges]


def _begin_texts(backend: Any) -> None:
    """Every text begins with [gMASK] and <sop>, as the original's do."""
    from tokenizers import processors

    tokens = [(token, backend.token_to_id(token)) for token in ("[gMASK]", "<sop>")]
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", pair="[gMASK] <sop> $A $B", special_tokens=tokens
    )
