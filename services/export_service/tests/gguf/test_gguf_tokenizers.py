"""Tokenizers that llama.cpp cannot follow are refused; templates and stop tokens go where Ollama looks."""

import json
from pathlib import Path
from typing import Any

import pytest

from export_service.gguf import GgufJob, GgufNotPossible, write
from export_service.gguf.modelfile import write_modelfile
from export_service.gguf.ollama_template import ollama_template
from modelkit import scratch
from modelkit.loading import load_tokenizer
from modelkit.templates import ChatTemplate
from services.export_service.tests.gguf.small_models import field, small_model
from tests.support.models import make_for_plain_text


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return small_model(tmp_path / "base", "llama")


def changed(base: Path, change: Any) -> GgufJob:
    """The job of a model whose tokenizer.json was changed."""
    path = base / "tokenizer.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))
    return GgufJob(base, None, base.parent / "out", "m", ["F16"])


def test_a_split_that_nobody_knows(llama: Path) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}|\P{L}"

    with pytest.raises(GgufNotPossible, match="knows no pre-tokenizer"):
        write(changed(llama, change))
    assert not (llama.parent / "out").exists() or not list((llama.parent / "out").iterdir())


def test_words_taken_whole(llama: Path) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["model"]["ignore_merges"] = True

    (file,) = write(changed(llama, change))
    assert field(file, "tokenizer.ggml.pre") == "llama-bpe"


def test_merges_unlike_sentencepiece(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "llama2")

    def change(spec: dict[str, Any]) -> None:
        spec["model"]["merges"] = spec["model"]["merges"][1:]

    with pytest.raises(GgufNotPossible, match="unlike those of sentencepiece"):
        write(changed(base, change))


def test_a_tokenizer_that_lowers_letters(llama: Path) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["normalizer"] = {"type": "Lowercase"}

    with pytest.raises(GgufNotPossible, match="Lowercase"):
        write(changed(llama, change))


def test_special_tokens_and_template(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "glm4")
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F16"]))
    tokens = field(file, "tokenizer.ggml.tokens")
    named = {name: tokens[field(file, f"tokenizer.ggml.{name}_token_id")] for name in ("eos", "eot", "eom", "padding")}
    assert named == {"eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>", "padding": "<|endoftext|>"}
    assert field(file, "tokenizer.ggml.add_bos_token") is False
    template = field(file, "tokenizer.chat_template")
    assert "generation %}" not in template.replace("add_generation_prompt %}", "")
    assert field(file, "glm4.rope.dimension_count") == 8


def test_names_by_which_llama_cpp_strips_spaces(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "phi3")
    (file,) = write(GgufJob(base, None, tmp_path / "out", "my-phi3", ["F16"]))
    assert field(file, "general.name") == "my-phi 3"


@pytest.mark.parametrize("family", scratch.FAMILIES)
def test_every_familys_template_is_said_to_ollama(family: str) -> None:
    known = scratch.FAMILIES[family]
    tokens = {"eos_token": known.eos, **({"bos_token": known.bos} if known.bos else {})}
    assert ollama_template(ChatTemplate(known.chat_template, tokens)) is not None


def test_a_template_in_ollamas_language() -> None:
    template = ChatTemplate(scratch.FAMILIES["qwen2"].chat_template, {})
    assert ollama_template(template) == (
        '{{ range $at, $_ := .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_template_that_looks_at_what_is_said() -> None:
    source = "{% for message in messages %}{{ loop.index }}{{ message['content'] }}{% endfor %}"
    assert ollama_template(ChatTemplate(source, {})) is None


def test_a_modelfile(llama: Path) -> None:
    (llama / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": [5, 6]})
    )
    paths = write(GgufJob(llama, None, llama.parent / "out", "m", ["Q8_0"], modelfile=True))
    assert [path.name for path in paths] == ["m-Q8_0.gguf", "Modelfile"]
    text = paths[1].read_text()
    assert text.startswith('FROM ./m-Q8_0.gguf\nTEMPLATE """<|begin_of_text|>{{ range')
    for line in (
        'stop "<|eot_id|>"',
        'stop "<|end_of_text|>"',
        'stop "<|eom_id|>"',
        "num_ctx 4096",
        "temperature 0.6",
        "top_k 20",
    ):
        assert f"\nPARAMETER {line}\n" in text


def test_what_the_template_ends_replies_with_ends_answers(llama: Path) -> None:
    """Also where the model, made for plain text, names another end alone."""
    _, reply_end = make_for_plain_text(llama)
    file, modelfile = write(GgufJob(llama, None, llama.parent / "out", "m", ["F16"], modelfile=True))
    assert 'PARAMETER stop "<|eot_id|>"' in modelfile.read_text()
    assert field(file, "tokenizer.ggml.eot_token_id") == reply_end


def test_a_modelfile_of_a_tokenizer_without_an_end(llama: Path) -> None:
    tokenizer: Any = load_tokenizer(llama)
    tokenizer.eos_token = None
    path = llama.parent / "Modelfile"
    stops = [tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    write_modelfile(path, "m.gguf", tokenizer=tokenizer, stops=stops, context_length=64, settings=path)
    assert [line for line in path.read_text().splitlines() if "stop" in line] == ['PARAMETER stop "<|eot_id|>"']
