"""What a model's process writes is what transformers would, whatever was asked before and goes on beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval_service.generation.engine.answers import Answer, Wish
from eval_service.generation.engine.base_engine import CHUNK, BaseEngine
from eval_service.generation.engine.errors import ConversationRefused
from eval_service.generation.engine.sampling import Sampling
from modelkit.datasets import Message
from modelkit.errors import InvalidAdapter
from modelkit.loading import load_model, load_tokenizer
from services.eval_service.tests.generation.conftest import FAMILIES, adapted, build_adapter, build_model

GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
ASKED: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does a lock do? 你好"},
    {"role": "assistant", "content": "It waits."},
    {"role": "user", "content": "And then?"},
]
LONG: list[Message] = [{"role": "user", "content": "def acquire(self): return True\n" * 40}]


def engine_of(directory: Path, **options: Any) -> BaseEngine:
    return BaseEngine(directory, **{"stored": "float32", "context": 1024, "at_once": 2, **options})


def answer(engine: BaseEngine, wish: Wish) -> tuple[str, Answer]:
    text, written = finished(engine, wish)
    written.close()
    return text, written


def finished(engine: BaseEngine, wish: Wish) -> tuple[str, Answer]:
    """An answer that is written and not closed."""
    written, text = Answer(engine, wish), ""
    while not written.finish_reason:
        text += written.step()
    return text, written


def tokens_of(written: Answer) -> list[int]:
    """What was written, without the token that ended it; closes the answer."""
    session: Any = written._session
    tokens = list(session.memory.tokens[written.prompt_tokens :])
    written.close()
    return tokens


def tokens_by_transformers(model: Any, directory: Path, messages: list[Message], tokens: int, **options: Any) -> Any:
    tokenizer: Any = load_tokenizer(directory)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids), **options}
    return model.generate(ids, max_new_tokens=tokens, **settings)[0, ids.shape[1] :].tolist()


def by_transformers(model: Any, directory: Path, messages: list[Message], tokens: int) -> str:
    found = tokens_by_transformers(model, directory, messages, tokens)
    tokenizer: Any = load_tokenizer(directory)
    text = str(tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text.rstrip("\ufffd")  # a character that was not finished


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_transformers(models: dict[str, Path], family: str, penalty: float) -> None:
    engine = engine_of(models[family])
    model: Any = load_model(models[family], dtype=torch.float32).eval()
    for messages in (ASKED, LONG):
        wish = Wish("", messages, Sampling(temperature=0.0, repetition_penalty=penalty), 60)
        expected = tokens_by_transformers(model, models[family], messages, 60, repetition_penalty=penalty)
        _, written = finished(engine, wish)
        found = tokens_of(written)
        assert found == expected[: len(found)]
        assert written.completion_tokens == len(expected)
        assert len(set(expected)) > 10, "the model is too dull to compare"


def test_sampling_keeps_what_transformers_keeps(models: dict[str, Path]) -> None:
    """Of one candidate, of the smallest nucleus and of the largest min_p only the likeliest is left."""
    engine = engine_of(models["qwen2"])
    greedy, _ = answer(engine, Wish("", ASKED, GREEDY, 20))
    for narrow in ({"top_k": 1}, {"top_p": 0.0, "top_k": 0}, {"min_p": 1.0, "top_k": 0, "top_p": 1.0}):
        sampling = Sampling(**{"temperature": 1.5, "repetition_penalty": 1.0, **narrow})
        assert answer(engine, Wish("", ASKED, sampling, 20))[0] == greedy


def test_a_seed_gives_one_answer(models: dict[str, Path]) -> None:
    engine = engine_of(models["qwen2"])
    answers = [answer(engine, Wish("", ASKED, Sampling(seed=seed), 20))[0] for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


def test_adapters_answer_as_peft_does_and_the_base_stays(models: dict[str, Path], adapters: list[Path]) -> None:
    base = models["qwen2"]
    engine = engine_of(base)
    before, _ = answer(engine, Wish("", ASKED, GREEDY, 40))
    for number, directory in enumerate(adapters):
        assert engine.add(str(number), directory) > 0
    found = [answer(engine, Wish(variant, ASKED, GREEDY, 40))[0] for variant in ("0", "1", "", "0")]
    for directory, text in zip(adapters, found, strict=False):
        peft = adapted(base, directory)
        assert text == by_transformers(peft, base, ASKED, 40)
    assert found[2] == before
    assert found[3] == found[0]
    assert len({*found}) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"bias": "all"},
        {"modules_to_save": ["embed_tokens"]},
        {"use_rslora": True},
    ],
)
def test_adapters_of_every_kind(models: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    base = models["qwen2"]  # its layers have biases, and its output layer is tied to the embeddings
    directory = build_adapter(tmp_path / "a", base, seed=3, **options)
    engine = engine_of(base)
    before, _ = answer(engine, Wish("", ASKED, GREEDY, 30))
    engine.add("a", directory)
    peft = adapted(base, directory)
    expected = by_transformers(peft, base, ASKED, 30)
    assert answer(engine, Wish("a", ASKED, GREEDY, 30))[0] == expected != before
    assert answer(engine, Wish("", ASKED, GREEDY, 30))[0] == before


def test_an_adapter_of_another_model_is_refused(adapters: list[Path], tmp_path: Path) -> None:
    engine = engine_of(build_model(tmp_path / "m", "qwen2", hidden_size=64))
    with pytest.raises(InvalidAdapter, match="another base model"):
        engine.add("a", adapters[0])
    assert answer(engine, Wish("", ASKED, GREEDY, 3))[1].finish_reason


def test_answers_take_turns_and_do_not_touch_each_other(models: dict[str, Path], adapters: list[Path]) -> None:
    engine = engine_of(models["qwen2"])
    for number, directory in enumerate(adapters):
        engine.add(str(number), directory)
    wishes = [Wish("0", ASKED, GREEDY, 30), Wish("1", ASKED, GREEDY, 30)]
    alone = [answer(engine, wish)[0] for wish in wishes]
    both, texts = [Answer(engine, wish) for wish in wishes], ["", ""]
    while not all(written.finish_reason for written in both):
        for number, written in enumerate(both):
            if not written.finish_reason:
                texts[number] += written.step()
    assert texts == alone


def test_a_conversation_is_read_once_and_answered_the_same(models: dict[str, Path]) -> None:
    """Whole chunks of a prompt are remembered, and what is remembered changes no answer (not in one bit)."""
    engine = engine_of(models["qwen2"])
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0)
    first, _ = answer(engine, Wish("", LONG, sampling, 20))
    again = Answer(engine, Wish("", LONG, sampling, 20))
    assert again._session.known >= CHUNK
    assert answer(engine, Wish("", LONG, sampling, 20))[0] == first
    turns: list[Message] = [*LONG, {"role": "assistant", "content": first or "x"}, {"role": "user", "content": "Go on"}]
    told, _ = answer(engine, Wish("", turns, sampling, 20))
    assert answer(engine_of(models["qwen2"]), Wish("", turns, sampling, 20))[0] == told


def test_what_is_remembered_keeps_to_what_was_counted(models: dict[str, Path]) -> None:
    """T26: conversations in the making and remembered ones fit what the service counts for as many as are at once."""
    engine = engine_of(models["qwen2"], context=1024, at_once=2)

    def remembered() -> list[int]:
        return [len(memory.tokens) for memory in engine._remembered]

    for start in ("a", "b", "c", "d"):
        answer(engine, Wish("", [{"role": "user", "content": start + LONG[0]["content"]}], GREEDY, 5))
        assert sum(remembered()) <= 2 * 1024
        for memory in engine._remembered:
            assert len(memory.tokens) % CHUNK == 0, "what was generated is remembered too"
            sizes = [layer.keys.untyped_storage().nbytes() for layer in memory.cache.layers]  # type: ignore[union-attr]
            assert sizes == [layer.keys.nbytes for layer in memory.cache.layers]  # type: ignore[union-attr]
    assert len(remembered()) > 1
    running = [Answer(engine, Wish("", ASKED, GREEDY, 5))]
    assert sum(remembered()) <= 1024
    running.append(Answer(engine, Wish("", ASKED, GREEDY, 5)))
    assert remembered() == []
    for written in running:
        written.close()


def test_a_sliding_window_that_is_full_remembers_nothing(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m", "gemma3")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"sliding_window": 48}))
    engine = engine_of(directory)
    model: Any = load_model(directory, dtype=torch.float32).eval()
    expected = tokens_by_transformers(model, directory, LONG, 20)
    for _ in range(2):
        _, written = finished(engine, Wish("", LONG, GREEDY, 20))
        found = tokens_of(written)
        assert found == expected[: len(found)]


def test_what_is_remembered_belongs_to_its_adapter(models: dict[str, Path], adapters: list[Path]) -> None:
    engine = engine_of(models["qwen2"])
    engine.add("0", adapters[0])
    answer(engine, Wish("", LONG, GREEDY, 5))
    assert Answer(engine, Wish("0", LONG, GREEDY, 5))._session.known == 0


def test_a_long_conversation_is_refused_with_the_numbers(models: dict[str, Path]) -> None:
    engine = engine_of(models["qwen2"], context=200)
    with pytest.raises(ConversationRefused, match=r"has \d+ tokens and the model reads at most 200") as caught:
        Answer(engine, Wish("", LONG, GREEDY, 5))
    assert caught.value.reason == "CONVERSATION_TOO_LONG"
    short: list[Message] = [{"role": "user", "content": "lock"}]
    _, written = answer(engine, Wish("", short, GREEDY, 10_000))
    assert written.finish_reason in ("length", "stop")
    assert written.prompt_tokens + written.completion_tokens <= 200


def test_the_template_refuses_what_it_does_not_know(models: dict[str, Path], tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m", "qwen2")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}x"
    (directory / "chat_template.jinja").write_text(strict)
    with pytest.raises(ConversationRefused, match="no system message"):
        Answer(engine_of(directory), Wish("", ASKED, GREEDY, 5))


def test_without_a_template_the_text_goes_on(tmp_path: Path) -> None:
    directory = build_model(tmp_path / "m", "llama2", template=False)
    engine = engine_of(directory)
    prompt = engine.prompt("", [{"role": "user", "content": "def wait"}, {"role": "user", "content": "def"}])
    tokenizer: Any = load_tokenizer(directory)
    assert prompt.tokens == tokenizer("def wait\n\ndef").input_ids
    model: Any = load_model(directory, dtype=torch.float32).eval()
    ids = torch.tensor([prompt.tokens])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(whole[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    start = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found, _ = answer(engine, Wish("", [{"role": "user", "content": "def wait\n\ndef"}], GREEDY, 30))
    settled = text.partition("\ufffd")[0]  # bytes that make no character are shown otherwise when more follow
    assert len(settled) > len(start)
    assert (start + found).startswith(settled)


def test_stop_texts_end_an_answer_and_are_not_part_of_it(models: dict[str, Path]) -> None:
    engine = engine_of(models["qwen2"])
    whole, _ = answer(engine, Wish("", ASKED, GREEDY, 40))
    stop = whole[12:17]
    text, written = answer(engine, Wish("", ASKED, GREEDY, 40, stop=["never said", stop]))
    assert text == whole[: whole.index(stop)]
    assert written.finish_reason == "stop"
