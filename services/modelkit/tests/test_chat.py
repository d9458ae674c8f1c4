"""Templates run in a bounded sandbox, and the loss counts only what the assistant writes (faults 42)."""

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from modelkit import scratch
from modelkit.chat import IGNORED, ChatEncoder
from modelkit.datasets import Message
from modelkit.encoders import configured_ends
from modelkit.errors import InvalidTemplate
from modelkit.loading import load_config, load_tokenizer
from modelkit.sandbox import TemplateTimeoutError, TimeLimit
from modelkit.templates import FALLBACK, ChatTemplate
from tests.support.models import THINKING_TEMPLATE, make_for_plain_text

CHAT: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Wie geht's? 你好"},
    {"role": "assistant", "content": "Gut — 很好.\n\tDanke"},
    {"role": "user", "content": "And you"},
    {"role": "assistant", "content": "Fine"},
]
ONE: list[Message] = CHAT[1:3]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    text = Path(threading.__file__).read_text()
    return {
        family: scratch.build(
            tmp_path_factory.mktemp(family) / "m",
            family=family,
            hidden_size=32,
            layers=1,
            vocab_size=400,
            corpus=[text],
        ).directory
        for family in scratch.FAMILIES
    }


def encoder_of(folder: Path, *, template: str | None = None, max_length: int = 500) -> tuple[ChatEncoder, Any]:
    tokenizer: Any = load_tokenizer(folder)
    if template is not None:
        tokenizer.chat_template = template or None
    stop_ids = configured_ends(load_config(folder))
    return ChatEncoder(tokenizer, max_length=max_length, stop_ids=stop_ids), tokenizer


def replies(tokenizer: Any, encoded: Any) -> str:
    return str(tokenizer.decode([int(label) for label in encoded.labels if label != IGNORED]))


STOPS = {
    "llama": ("<|eot_id|>", "<|eot_id|>"),
    "qwen2": ("<|im_end|>", "<|im_end|>"),
    "glm4": ("<|user|>", "<|endoftext|>"),
}


@pytest.mark.parametrize("family", STOPS)
@pytest.mark.parametrize("marked", [True, False])
def test_labels_are_the_replies_and_what_ends_them(folders: dict[str, Path], family: str, marked: bool) -> None:
    source = load_tokenizer(folders[family]).chat_template
    if not marked:
        source = re.sub(r"\{%-? (end)?generation %\}", "", str(source))
    encoder, tokenizer = encoder_of(folders[family], template=str(source))
    assert encoder.template.marked is marked
    first, last = STOPS[family]
    encoded = encoder.encode([CHAT])[0]
    assert replies(tokenizer, encoded) == f"Gut — 很好.\n\tDanke{first}Fine{last}"
    assert "Be kind." in tokenizer.decode(encoded.input_ids)
    assert not encoded.truncated
    assert not encoded.masked


def test_marks_agree_with_transformers(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders["llama"])
    theirs = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ours = encoder.encode([CHAT])[0]
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert (ours.labels != IGNORED).tolist() == [bool(mark) for mark in theirs["assistant_masks"]]


def test_a_tokenizer_without_template_gets_a_plain_one(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder, tokenizer = encoder_of(folders["qwen2"], template="")
    assert encoder.fallback
    assert tokenizer.chat_template == FALLBACK
    assert replies(tokenizer, encoder.encode([CHAT])[0]) == "Gut — 很好.\n\tDanke<|im_end|>Fine<|im_end|>"
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == FALLBACK


def test_truncation_is_told_and_may_leave_nothing(folders: dict[str, Path]) -> None:
    encoder, _ = encoder_of(folders["llama"], max_length=30)
    cut, whole = encoder.encode([CHAT, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
    assert cut.truncated
    assert cut.masked
    assert len(cut.input_ids) == 30
    assert not whole.truncated
    assert not whole.masked


PROMPT_THINKS = THINKING_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
).replace("<think>\n\n</think>\n\n", "")


def test_templates_that_show_old_turns_otherwise_still_train_every_reply(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders["qwen2"], template=THINKING_TEMPLATE)
    text = replies(tokenizer, encoder.encode([CHAT])[0])
    assert text == "Gut — 很好.\n\tDanke<|im_end|><think>\n\n</think>\n\nFine<|im_end|>"
    encoder, tokenizer = encoder_of(folders["qwen2"], template=PROMPT_THINKS)
    assert replies(tokenizer, encoder.encode([CHAT])[0]) == "Gut — 很好.\n\tDanke<|im_end|>Fine<|im_end|>"


# The first of LLaMA 3: it asks for a reply at the end of every text.
FIRST_LLAMA_3 = """\
{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'\
+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""


@pytest.mark.parametrize("repeated", [1, 20])
def test_replies_end_as_the_template_ends_them_also_where_it_always_asks_for_another(
    folders: dict[str, Path], tmp_path: Path, repeated: int
) -> None:
    copytree(folders["llama"], folder := tmp_path / "m")
    make_for_plain_text(folder)
    encoder, tokenizer = encoder_of(folder, template=FIRST_LLAMA_3)
    for encoded in encoder.encode([CHAT] * repeated):
        assert replies(tokenizer, encoded) == "Gut — 很好.\n\tDanke<|eot_id|>Fine<|eot_id|>"


def growing(value: str, *, start: str = "'aaaa'", before: str = "") -> str:
    """A template that makes a text or a list longer and longer without any output."""
    loop = f"{{% for i in range(60) %}}{before}{{% set n.x = {value} %}}{{% endfor %}}"
    return f"{{% set n = namespace(x={start}) %}}{loop}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "cannot be compiled"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ messages[0].content }}", "as it was written"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "fit the conversation"),
        ("{{ 'a' * 10 ** 9 }}", "too long"),
        ("{{ 2 ** (10 ** 9) }}", "too large"),
        ("{{ '%0999999999d' % 1 }}", "not available"),
        ("{{ '{:0999999999}'.format(1) }}", "not available"),
        ("{{ 'a'.ljust(999999999) }}", "unsafe"),
        ("{{ 'a' | center(999999999) }}", "too wide"),
        ("{{ 'a' | indent(999999999) }}", "too wide"),
        (growing("n.x ~ n.x"), "too long"),
        (growing("n.x + n.x"), "too long"),
        (growing("n.x + n.x", start="[1]"), "too long"),
        (growing("n.x.replace('a', 'aa')"), "too long"),
        (growing("n.x | replace('a', 'aa')"), "too long"),
        (growing("[n.x, n.x] | join"), "too long"),
        (growing("''.join([n.x, n.x])"), "too long"),
        (growing("y", before="{% set y %}{{ n.x }}{{ n.x }}{% endset %}"), "too long"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "come of one conversation"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)  # fmt: skip
def test_hostile_and_broken_templates_are_refused(folders: dict[str, Path], template: str, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidTemplate, match=words):
        encoder_of(folders["llama"], template=template)[0].encode([ONE])
    assert time.monotonic() - started < 20


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_template_that_never_ends_is_stopped(in_thread: bool) -> None:
    template = ChatTemplate(ENDLESS, {}, seconds=0.2)
    caught: list[BaseException] = []

    def render() -> None:
        try:
            with template.time_limit():
                template.render(ONE)
        except InvalidTemplate as error:
            caught.append(error)

    if in_thread:
        thread = threading.Thread(target=render)
        thread.start()
        thread.join(30)
    else:
        render()
    assert "did not end within" in str(caught[0])


def test_a_template_is_stopped_also_when_the_first_try_is_lost() -> None:
    """Python drops what is raised in a finalizer, which it may call while a template is rendered."""

    def endless() -> None:
        while True:
            pass

    with pytest.raises(TemplateTimeoutError), TimeLimit(0.05):
        with suppress(TemplateTimeoutError):
            endless()
        endless()


def test_many_conversations_are_no_template_that_never_ends(folders: dict[str, Path]) -> None:
    encoder, _ = encoder_of(folders["llama"])
    slow = "{% for i in range(99999) %}{% endfor %}{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}"
    encoder.template = ChatTemplate(slow, {}, seconds=0.4)
    roles = ("user", "assistant") * 8
    chats = [[Message(role=role, content=f"{role}{row}") for role in roles[: 2 + row % 14]] for row in range(60)]
    assert len(encoder.encode(chats)) == len(chats)


def test_more_time_is_never_more_than_one_conversation_may_take() -> None:
    def work(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    with pytest.raises(TemplateTimeoutError), TimeLimit(0.3) as limit:
        for _ in range(4):
            work(0.2)
            limit.extend(100)
        started = time.thread_time()
        work(60)
    assert time.thread_time() - started < 5


def test_a_machine_that_stands_still_does_not_make_a_template_slow() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, seconds=0.4)
    waited = threading.Event()
    with template.time_limit():
        waited.wait(0.6)
        assert template.render(ONE) == ONE[0]["content"]


def test_ordinary_features_of_templates_work(folders: dict[str, Path]) -> None:
    source = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{{ '%' if false else '' }}{{ m['content'].strip().split('x') | join('x') }}"
        "{{ ns.n % 2 }}{{ m | tojson(indent=2) | length > 0 }}"
        "{{ (m.content | trim).replace('zzz', 'y') | length * 2 }}|{% endfor %}{{ eos_token }}"
    )
    template = ChatTemplate(source, {"eos_token": "</s>"})
    assert template.render(ONE).endswith("</s>")


@pytest.mark.parametrize("family", ["glm4", "qwen2", "gemma"])
def test_a_reply_whose_last_character_takes_several_tokens_is_learnt_with_its_end(
    folders: dict[str, Path], family: str
) -> None:
    source = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '\n' }}{{ m.content }}{% endfor %}"
    encoder, tokenizer = encoder_of(folders[family], template=source)
    chat: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Gut 😀"}]
    assert replies(tokenizer, encoder.encode([chat])[0]).strip() == f"Gut 😀{tokenizer.eos_token}"
