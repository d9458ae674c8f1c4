"""ChatGLM2 and 3 in their original layout are converted: same logits as their description means (F1, F10, C-GLM)."""

import base64
import io
import itertools
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers
from torch.nn import functional

from modelkit.base_models import BaseModels
from modelkit.chat import IGNORED, ChatEncoder
from modelkit.chatglm.byte_level import SPLIT, read_ranks
from modelkit.errors import InvalidModel
from modelkit.loading import load_config, load_model, load_tokenizer
from modelkit.paths import AllowedRoots

LAYERS, HEADS, GROUPS, WIDTH, HIDDEN, FEED = 3, 4, 2, 16, 48, 80
ROTATED = WIDTH // 2
SPECIAL = 9
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the kind that ChatGLM has: BPE, bytes for what is unknown, a space before each text."""
    written = io.BytesIO()
    lines = [line for line in Path(json.__file__).read_text().splitlines() if line.strip()] + [
        "你好，世界。你好吗？"
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=440, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(written.getvalue())
    return path


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLM"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": FEED,
        "fp32_residual_connection": False,
        "hidden_size": HIDDEN,
        "kv_channels": WIDTH,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": GROUPS,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "original_rope": True,
        "padded_vocab_size": 464,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "torch_dtype": "float32",
        **more,
    }


def random_weights(config: dict[str, Any]) -> Weights:
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.1

    def vector(size: int) -> torch.Tensor:
        return 1 + 0.2 * torch.randn(size, generator=generator)

    fused = (HEADS + 2 * GROUPS) * WIDTH
    weights = {
        "transformer.embedding.word_embeddings.weight": matrix(config["padded_vocab_size"], HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(ROTATED // 2),
        "transformer.encoder.final_layernorm.weight": vector(HIDDEN),
        "transformer.output_layer.weight": matrix(config["padded_vocab_size"], HIDDEN),
    }
    for number in range(LAYERS):
        prefix = f"transformer.encoder.layers.{number}."
        weights |= {
            f"{prefix}input_layernorm.weight": vector(HIDDEN),
            f"{prefix}post_attention_layernorm.weight": vector(HIDDEN),
            f"{prefix}self_attention.query_key_value.weight": matrix(fused, HIDDEN),
            f"{prefix}self_attention.dense.weight": matrix(HIDDEN, HEADS * WIDTH),
            f"{prefix}mlp.dense_h_to_4h.weight": matrix(2 * FEED, HIDDEN),
            f"{prefix}mlp.dense_4h_to_h.weight": matrix(HIDDEN, FEED),
        }
        if config["add_qkv_bias"]:
            weights[f"{prefix}self_attention.query_key_value.bias"] = vector(fused) - 1
    return weights


def reference(ids: torch.Tensor, weights: Weights, config: dict[str, Any], *, base: float, stretch: float) -> Any:
    """Logits from the description of the architecture, in plain PyTorch: ids (tokens,) to (tokens, vocabulary)."""

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + config["layernorm_epsilon"])
        return values * scale * weights[name]

    def rotate(heads: torch.Tensor) -> torch.Tensor:
        """Turns neighbouring pairs of the first half of each head, (tokens, heads, width), by the position."""
        frequencies = base ** -(torch.arange(0, ROTATED, 2).double() / ROTATED)
        angles = torch.outer(torch.arange(len(heads)).double() / stretch, frequencies)[:, None]
        even, odd = heads[..., 0:ROTATED:2].double(), heads[..., 1:ROTATED:2].double()
        turned = torch.stack(
            [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], dim=-1
        )
        return torch.cat([turned.flatten(-2).float(), heads[..., ROTATED:]], dim=-1)

    tokens = len(ids)
    hidden = weights["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(LAYERS):
        prefix = f"transformer.encoder.layers.{number}."
        fused = norm(hidden, f"{prefix}input_layernorm.weight") @ (
            weights[f"{prefix}self_attention.query_key_value.weight"].T
        )
        fused = fused + weights.get(f"{prefix}self_attention.query_key_value.bias", torch.zeros(()))
        queries = rotate(fused[:, : HEADS * WIDTH].view(tokens, HEADS, WIDTH))
        keys, values = fused[:, HEADS * WIDTH :].view(tokens, 2, GROUPS, WIDTH).unbind(1)
        keys = rotate(keys)
        attended = []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            scores = queries[:, head] @ keys[:, group].T / math.sqrt(WIDTH)
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
            attended.append(scores.softmax(-1) @ values[:, group])
        hidden = hidden + torch.cat(attended, -1) @ weights[f"{prefix}self_attention.dense.weight"].T
        wide = norm(hidden, f"{prefix}post_attention_layernorm.weight") @ weights[f"{prefix}mlp.dense_h_to_4h.weight"].T
        gated = functional.silu(wide[:, :FEED]) * wide[:, FEED:]
        hidden = hidden + gated @ weights[f"{prefix}mlp.dense_4h_to_h.weight"].T
    hidden = norm(hidden, "transformer.encoder.final_layernorm.weight")
    return hidden @ weights["transformer.output_layer.weight"].T


def checkpoint(directory: Path, tokenizer: Path, config: dict[str, Any], *, files: int = 1) -> Weights:
    """Writes a checkpoint in the original layout, with code beside it that must never run."""
    directory.mkdir(parents=True)
    weights = random_weights(config)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for name in ("modeling_chatglm.py", "configuration_chatglm.py", "tokenization_chatglm.py"):
        (directory / name).write_text("raise SystemExit('code of a model was run')")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.T", None]}}
        )
    )
    names = sorted(weights)
    if files == 1:
        save_file(weights, directory / "model.safetensors")
        return weights
    index = {}
    for part in range(files):
        shard = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: weights[name] for name in names[part::files]}, directory / shard)
        index |= dict.fromkeys(names[part::files], shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return weights


@pytest.fixture
def models(tmp_path: Path) -> BaseModels:
    return BaseModels(AllowedRoots([tmp_path / "root"]), hub_cache=tmp_path / "hub", conversions=tmp_path / "converted")


@pytest.mark.parametrize(("name", "changes", "base", "stretch"), [
    ("THUDM/chatglm3-6b", {}, 1e4, 1.0),
    ("THUDM/chatglm2-6b", {"add_qkv_bias": False}, 1e4, 1.0),
    ("THUDM/chatglm3-6b-32k", {"rope_ratio": 50}, 5e5, 1.0),
    ("THUDM/chatglm2-6b-32k", {"rope_ratio": 50}, 1e4, 50.0),
])  # fmt: skip
def test_a_converted_model_has_the_logits_of_the_original(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, name: str, changes: dict[str, Any], base: float,
    stretch: float,
) -> None:  # fmt: skip
    config = configuration(**changes)
    weights = checkpoint(tmp_path / "root" / name, sentencepiece_model, config, files=3)
    found = models.resolve(name)
    assert (found.family, found.architecture, found.needs_conversion) == ("glm", "GlmForCausalLM", True)
    assert "q_proj" in found.layers
    folder = models.ready(found)
    assert len(list(folder.glob("*.safetensors"))) == 3
    model = load_model(folder, dtype=torch.float32)
    ids = torch.randint(0, 464, (70,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    expected = reference(ids, weights, config, base=base, stretch=stretch)
    assert torch.allclose(logits, expected, atol=2e-4)
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


TEXTS = [
    "hello world",
    "你好，世界",
    "\n",
    "def f(x):\n    return x",
    "é 🙂 日本語",
    "a sophisticated top",
    " two  spaces ",
]


def test_the_converted_tokenizer_gives_the_numbers_of_the_original(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    folder = models.ready(models.resolve("chatglm3-6b"))
    tokenizer: Any = load_tokenizer(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text), text
        assert tokenizer.decode(ids) == text
    first = original.vocab_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(first, first + len(names)))
    assert len(tokenizer) == first + SPECIAL
    assert tokenizer("x")["input_ids"][:2] == [first + 1, first + 3]
    assert load_config(folder).eos_token_id == [2, first + 6, first + 8]


def test_configuration_and_tokenizer_are_there_before_the_conversion(tmp_path: Path, sentencepiece_model: Path) -> None:
    """A look at data at submit needs no weights."""
    source = tmp_path / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    config, tokenizer = load_config(source), load_tokenizer(source)
    assert (config.model_type, config.num_key_value_heads) == ("glm", GROUPS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("x")["input_ids"])[:2] == ["[gMASK]", "<sop>"]


CONVERSATION = [
    {"role": "system", "content": "Kurz."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "return"},
    {"role": "assistant", "content": "object"},
]


def test_conversations_are_written_as_chatglm3_writes_them(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    """Each message is a role's token, an empty line, and the message, encoded by itself as the original does."""
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    folder = models.ready(models.resolve("chatglm3-6b"))
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    first = original.vocab_size()
    roles = {"system": first + 5, "user": first + 6, "assistant": first + 7}
    expected = [first + 1, first + 3]
    for message in CONVERSATION:
        expected += [roles[message["role"]], *original.encode("\n"), *original.encode(message["content"])]
    ends: Any = config.eos_token_id
    (row,) = ChatEncoder(tokenizer, max_length=500, stop_ids=ends).encode([CONVERSATION])  # type: ignore[list-item]
    assert row.input_ids.tolist() == [*expected, 2]
    labelled = row.input_ids[row.labels != IGNORED].tolist()
    line = original.encode("\n")
    assert labelled == [*line, *original.encode("world"), first + 6, *line, *original.encode("object"), 2]


def test_conversations_are_written_as_chatglm2_writes_them(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    checkpoint(tmp_path / "root" / "chatglm2-6b", sentencepiece_model, configuration())
    tokenizer: Any = load_tokenizer(models.ready(models.resolve("chatglm2-6b")))
    text = tokenizer.apply_chat_template(CONVERSATION[1:4], tokenize=False)
    assert text == "[gMASK]<sop>[Round 1]\n\n问：hello\n\n答：world\n\n[Round 2]\n\n问：return\n\n答："


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of the kind that GLM-4 has: byte strings by rank, learnt by counting neighbours."""
    text = (Path(json.__file__).read_text() + "你好，世界。" * 40).encode()
    tokens = [bytes([byte]) for byte in range(256)]
    parts = [tokens[byte] for byte in text]
    while len(tokens) < 400:
        pairs = Counter(first + second for first, second in itertools.pairwise(parts) if b"\n" not in second)
        best = pairs.most_common(1)[0][0]
        tokens.append(best)
        parts = merged(parts, best)
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def merged(parts: list[bytes], wanted: bytes) -> list[bytes]:
    """Neighbours that make a token joined, from the left."""
    found: list[bytes] = []
    for part in parts:
        if found and found[-1] + part == wanted:
            found[-1] = wanted
        else:
            found.append(part)
    return found


def by_ranks(text: str, ranks: dict[bytes, int], split: str) -> list[int]:
    """The ids of a text as the ranks mean them: in each part, the neighbours of the lowest rank are joined first."""
    ids = []
    for piece, _ in pre_tokenizers.Split(Regex(split), behavior="isolated").pre_tokenize_str(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while joined := [first + second for first, second in itertools.pairwise(parts) if first + second in ranks]:
            best = min(joined, key=lambda token: ranks[token])
            at = next(at for at in range(len(parts)) if parts[at] + parts[at + 1] == best)
            parts[at : at + 2] = [best]
        ids += [ranks[part] for part in parts]
    return ids


def test_glm4_in_its_original_layout_is_converted_too(tmp_path: Path, models: BaseModels, ranks: Path) -> None:
    config = configuration(rope_ratio=500, eos_token_id=[400, 407, 409], pad_token_id=400)
    weights = checkpoint(tmp_path / "root" / "THUDM" / "glm-4-9b", ranks, config)
    folder = models.ready(models.resolve("THUDM/glm-4-9b"))
    assert load_config(folder).eos_token_id == [400, 407, 409]
    assert load_config(folder).pad_token_id == 400
    tokenizer: Any = load_tokenizer(folder)
    known = {token: rank for rank, token in enumerate(read_ranks(ranks))}
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == by_ranks(text, known, SPLIT), text
        assert tokenizer.decode(ids) == text
    (row,) = ChatEncoder(tokenizer, max_length=500, stop_ids=[407]).encode([CONVERSATION[1:]])  # type: ignore[list-item]
    shown = tokenizer.decode(row.input_ids)
    assert shown == (
        "[gMASK]<sop><|user|>\nhello<|assistant|>\nworld<|user|>\nreturn<|assistant|>\nobject<|endoftext|>"
    )
    ids = torch.arange(60)
    with torch.no_grad():
        logits = load_model(folder, dtype=torch.float32)(ids[None]).logits[0]
    assert torch.allclose(logits, reference(ids, weights, config, base=5e6, stretch=1.0), atol=2e-4)


@pytest.mark.parametrize("content", ["AA==\n", "AA== 0\n!!! 1\n", "AA== 0\nAQ== 5\n"])
def test_damaged_ranks_name_their_line(tmp_path: Path, models: BaseModels, ranks: Path, content: str) -> None:
    source = tmp_path / "root" / "glm-4-9b"
    checkpoint(source, ranks, configuration())
    (source / "tokenizer.model").write_text(content)
    with pytest.raises(InvalidModel, match=r"tokenizer\.model, line \d"):
        models.ready(models.resolve("glm-4-9b"))


def test_a_conversion_is_done_once_and_again_when_files_change(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    weights = checkpoint(source, sentencepiece_model, configuration())
    abandoned, fresh = (tmp_path / "converted" / f".converting-{name}" for name in ("old", "new"))
    abandoned.mkdir(parents=True)
    fresh.mkdir()
    os.utime(abandoned, (0, 0))
    first = models.ready(models.resolve("chatglm3-6b"))
    assert (abandoned.exists(), fresh.exists()) == (False, True)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert models.ready(models.resolve("chatglm3-6b")) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    save_file({name: tensor + 1 for name, tensor in weights.items()}, source / "model.safetensors")
    second = models.ready(models.resolve("chatglm3-6b"))
    assert second != first
    name = "lm_head.weight"
    assert torch.equal(load_file(second / "model.safetensors")[name], load_file(first / "model.safetensors")[name] + 1)
    assert list((tmp_path / "converted").glob(".*")) == [fresh]


def test_a_conversion_is_on_disk_before_it_has_its_name(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name for ever; a crash of the machine must not leave empty files under it."""
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    synced, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    target = models.ready(models.resolve("chatglm3-6b"))
    staged = {path.name for path in synced if ".converting-" in str(path)}
    assert {path.name for path in target.iterdir()} <= staged


def spoil(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(("harm", "words"), [
    (lambda d: spoil(d, multi_query_attention=False), "multi_query_attention = False has no equivalent"),
    (lambda d: spoil(d, pre_seq_len=128), "pre_seq_len = 128"),
    (lambda d: spoil(d, quantization_bit=4), "quantization_bit = 4"),
    (lambda d: spoil(d, num_layers="many"), "has no num_layers, as ChatGLM2"),
    (lambda d: spoil(d, vision_config={"hidden_size": 8}), "vision_config"),
    (lambda d: (d / "tokenizer.model").unlink(), "has no tokenizer.model"),
    (lambda d: os.truncate(d / "tokenizer.model", 1000), "tokenizer.model cannot be read"),
    (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pickles"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, harm: Any, words: str
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    harm(source)
    with pytest.raises(InvalidModel, match=words):
        models.resolve("chatglm3-6b")


@pytest.mark.parametrize("name", ["transformer.prefix_encoder.embedding.weight", "lm_head.weight"])
def test_an_unknown_tensor_ends_the_conversion(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, name: str
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    weights = checkpoint(source, sentencepiece_model, configuration())
    save_file({**weights, name: torch.ones(2, 2)}, source / "model.safetensors")
    found = models.resolve("chatglm3-6b")
    with pytest.raises(InvalidModel, match="no tensor of a ChatGLM model"):
        models.ready(found)
    assert list((tmp_path / "converted").iterdir()) == []
