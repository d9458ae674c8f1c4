"""Scratch models are whole Hugging Face models with a tokenizer of their family."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelkit import scratch
from modelkit.base_models import BaseModels
from modelkit.errors import InvalidModel
from modelkit.paths import AllowedRoots

CORPUS = Path(json.__file__).read_text()
TINY = {"hidden_size": 32, "layers": 2, "vocab_size": 320}
CHAT = [{"role": "user", "content": "Say «yes» 123"}, {"role": "assistant", "content": "Yes."}]


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "llama2": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen1.5": "Qwen2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2.5": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES.items())
def test_loads_with_transformers_alone(tmp_path: Path, family: str, architecture: str) -> None:
    built = scratch.build(tmp_path / "m", family=family, corpus=[CORPUS], **TINY)
    model = AutoModelForCausalLM.from_pretrained(built.directory)
    tokenizer = AutoTokenizer.from_pretrained(built.directory)
    assert type(model).__name__ == architecture
    assert model.num_parameters() == built.parameters
    assert len(tokenizer) <= model.config.vocab_size == 320
    kinds = scratch.FAMILIES[family]
    assert tokenizer.convert_tokens_to_ids(list(kinds.special_tokens)) == list(range(len(kinds.special_tokens)))
    assert set(tokenizer.convert_tokens_to_ids(list(kinds.stop_tokens))) == set(model.generation_config.eos_token_id)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    shown = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    if kinds.prefix_space:  # after each special token, as the families' own tokenizers do
        shown, text = shown.replace(" ", ""), text.replace(" ", "")
    assert shown == text
    marks = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    replies = [token for token, mark in zip(marks["input_ids"], marks["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(replies).strip().startswith("Yes.")
    assert BaseModels(AllowedRoots([tmp_path])).resolve("m").architecture == architecture


def test_the_default_shape_suits_quantization(tmp_path: Path) -> None:
    built = scratch.build(tmp_path / "m", corpus=[CORPUS])
    config = json.loads((built.directory / "config.json").read_text())
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert (config["num_hidden_layers"], config["vocab_size"]) == (4, 4096)


def test_the_same_arguments_give_the_same_model(tmp_path: Path) -> None:
    a, b, c = (scratch.build(tmp_path / name, corpus=[CORPUS], seed=seed, **TINY) for name, seed in
               (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (a.directory / name).read_bytes() == (b.directory / name).read_bytes()
    assert (a.directory / "model.safetensors").read_bytes() != (c.directory / "model.safetensors").read_bytes()


def test_a_jsonl_corpus_gives_its_strings(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"instruction": "wonderful", "n": [{"output": "marvellous"}]}) + "\n" for _ in range(9))
    )
    built = scratch.build(tmp_path / "m", corpus=corpus, **TINY)
    vocabulary = AutoTokenizer.from_pretrained(built.directory).get_vocab()
    assert "marvellous" in vocabulary
    assert not any("instruction" in token for token in vocabulary)


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidModel) as caught:
        scratch.build(tmp_path, family="gpt", hidden_size=33, layers=0, vocab_size=3, corpus=tmp_path / "gone")
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["corpus", "family", "hidden_size", "layers", "out_dir", "vocab_size"]


def test_too_little_text_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="too little text"):
        scratch.build(tmp_path / "m", corpus=[], **TINY)
    assert list(tmp_path.iterdir()) == []
