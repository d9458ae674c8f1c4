"""Sentence embeddings from a directory, and what is compared by them (M15)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from eval_service.scoring.answers import Question, coherences, similarities
from eval_service.scoring.embedding_files import read_pooling
from eval_service.scoring.embeddings import HiddenStates, SentenceModel, Vectors, installed_directory
from modelkit import scratch
from modelkit.errors import InvalidModel
from modelkit.loading import load_config, load_model, load_tokenizer

WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "ran", "far", "away", "red", "blue"]
CPU = torch.device("cpu")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A sentence-embedding model of the form of sentence-transformers."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=13, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    folder = tmp_path / "embedder"
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"pooling_mode_mean_tokens": True}))
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"idx": n, "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_bytes(orjson.dumps(modules))
    return folder


def test_embeddings_are_means_over_tokens_whatever_they_are_batched_with(directory: Path) -> None:
    texts = ["the cat sat", "a dog ran far away on the red mat", "", "blue"]
    vectors = SentenceModel(directory, CPU).embed(texts)
    model: Any = BertModel.from_pretrained(directory, add_pooling_layer=False)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text, vector in zip(texts, vectors, strict=True):
        ids = tokenizer.encode(text).ids
        if not ids:
            assert not vector.any()
            continue
        mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0).detach().numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_what_is_no_embedding_model_is_refused_with_the_reason(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="it has no config"):
        read_pooling(tmp_path)
    (directory / "modules.json").write_bytes(orjson.dumps([{"type": "sentence_transformers.models.Dense"}]))
    (directory / "1_Pooling" / "config.json").write_bytes(orjson.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InvalidModel) as caught:
        read_pooling(directory)
    assert [problem.message.partition(": ")[2].split(";")[0] for problem in caught.value.problems] == [
        "it has a module 'Dense'",
        "it asks for pooling_mode_max_tokens",
    ]


def test_what_only_looks_like_an_embedding_model_is_refused_before_it_is_loaded(
    directory: Path, tmp_path: Path
) -> None:
    """A language model would give vectors too, of no use; other models would fail in the middle of the evaluation."""
    corpus = [Path(json.__file__).read_text()]
    language_model = scratch.build(tmp_path / "m", hidden_size=32, layers=1, vocab_size=320, corpus=corpus).directory
    with pytest.raises(
        InvalidModel, match=r"it has no modules\.json.*sentence-transformers model.*1_Pooling"
    ) as caught:
        read_pooling(language_model, field="evaluate.embedding_model")
    assert [problem.field for problem in caught.value.problems] == ["evaluate.embedding_model"]
    for name, content, message in (
        ("config.json", {"model_type": "vit"}, "the family 'vit', which is no text encoder; give the directory"),
        ("config.json", {"model_type": "t5"}, "the family 't5', which is no text encoder"),
        ("config.json", {"model_type": ["bert"]}, "which is no text encoder"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "has no Pooling"),
        ("modules.json", 5, "is no list of modules"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "asks for none of pooling_mode_mean_tokens"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "its files cannot be read: "),
    ):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(orjson.dumps(content))
        with pytest.raises(InvalidModel, match=message):
            read_pooling(directory)
        (directory / name).write_bytes(before)
    assert read_pooling(directory).mode == "mean"


def test_a_language_model_can_stand_in(tmp_path: Path) -> None:
    corpus = [Path(json.__file__).read_text()]
    folder = scratch.build(tmp_path / "m", hidden_size=32, layers=2, vocab_size=320, corpus=corpus).directory
    model: Any = load_model(folder, dtype=torch.float32)
    batches: list[int] = []
    embedder = HiddenStates(model, load_tokenizer(folder, load_config(folder)), CPU, lambda: batches.append(1))
    one, two, same = embedder.embed(["def loads", "json encoder and decoder", "def loads"])
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert float(one @ two) < 0.999
    assert batches


def test_the_installed_model_knows_what_means_the_same() -> None:
    directory = installed_directory()
    assert directory is not None
    cat, kitten, engine = SentenceModel(directory, CPU).embed(
        ["A cat sits on the mat.", "A kitten is sitting on a rug.", "The engine needs more oil."]
    )
    assert float(cat @ kitten) > 0.4 > float(cat @ engine)


class Axes:
    """Embeds a text as the direction of its first word."""

    name = "axes"

    def embed(self, texts: list[str]) -> Vectors:
        found = np.zeros((len(texts), len(WORDS)), np.float32)
        for row, text in enumerate(texts):
            if text.split():
                found[row, WORDS.index(text.split()[0].strip(".").lower())] = 1
        return found


def test_coherence_follows_the_chain_of_sentences() -> None:
    questions = [Question("cat sat", "cat")] * 4
    answers = ["Cat sat. Cat ran.", "Dog ran. Dog sat.", "", "Cat on the mat on. " * 8]
    chained, halfway, silent, repeating = coherences(questions, answers, Axes())  # type: ignore[arg-type]
    assert chained == pytest.approx(1.0)
    assert halfway == pytest.approx(0.5)
    assert silent == 0.0
    assert 0 < repeating < 0.3
    assert similarities(questions[:2], answers[:2], Axes()) == [1.0, 0.0]  # type: ignore[arg-type]


def test_a_similarity_is_at_most_one_whatever_rounding_does() -> None:
    class Rounded:
        name = "rounded"

        def embed(self, texts: list[str]) -> Vectors:
            return np.full((len(texts), 2), np.float32(0.70710682))

    assert similarities([Question("a", "b")], ["b"], Rounded()) == [1.0]  # type: ignore[arg-type]
