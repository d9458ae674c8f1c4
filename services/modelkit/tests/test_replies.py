"""Replies are found in the text of templates that do not mark them, whatever else the text says."""

from collections.abc import Sequence

import pytest

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate
from modelkit.replies import Replies, Written
from modelkit.templates import ChatTemplate

# As Qwen3's: the last reply has room for thoughts, those of earlier ones are left out.
THINKING = """\
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.last %}
        {{- '<think>\\n' + thoughts | default('') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
# As Phi-3's: a text that asks for no reply ends with a token of its own.
CLOSED = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '</s>' }}{% endif %}"""
# As the first of LLaMA 3: it always asks for a reply.
ASKING = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim + '<|eot|>' }}{% endfor %}{{ '<|assistant|>' }}"""
# As DeepSeek R1's: it asks for thoughts and shows none.
THOUGHTLESS = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""
# As GLM-4's: nothing is written after a reply.
BARE = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

# What is said is escaped.
ESCAPED = """\
{%- for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content | tojson }}{{ '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def replies(source: str, *contents: str) -> Sequence[str]:
    roles = ("user", "assistant") * len(contents)
    messages = [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]
    text, spans = ChatTemplate(source, {}).reply_spans(messages)
    return [text[first:last] for first, last in spans]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (THINKING, ["Yes<|im_end|>", "user<|im_end|>", "<think>\n\n</think>\n\nim<|im_end|>"]),
        (CLOSED, ["Yes<|end|>", "user<|end|>", "im<|end|>\n</s>"]),
        (ASKING, ["Yes<|eot|>", "user<|eot|>", "im<|eot|>"]),
        (THOUGHTLESS, ["Yes<|end|>", "user<|end|>", "im<|end|>"]),
        (BARE, ["\nYes", "\nuser", "\nim"]),
    ],
)
def test_words_of_a_user_or_the_template_are_no_reply(source: str, found: list[str]) -> None:
    assert replies(source, "Say Yes", "Yes", "Yes im user", "user", "im", "im") == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (THINKING, [" a \n<|im_end|>", "<|im_end|>", "<think>\n\n</think>\n\nb \n<|im_end|>"]),
        (CLOSED, [" a \n<|end|>", "<|end|>", "b \n<|end|>\n</s>"]),
        (ASKING, ["a<|eot|>", "<|eot|>", "b<|eot|>"]),
        (THOUGHTLESS, [" a \n<|end|>", "<|end|>", "b \n<|end|>"]),
        (BARE, ["\n a \n", "\n", "\nb \n"]),
        (ESCAPED, ['" a \\n"<|end|>', '""<|end|>', '"b \\n"<|end|>']),
    ],
)
def test_white_space_of_replies_is_theirs_and_empty_ones_end_too(source: str, found: list[str]) -> None:
    assert replies(source, "q", " a \n", "q", "", "q", "b \n") == found


def test_thoughts_that_a_template_leaves_out_of_earlier_replies_are_not_missed() -> None:
    thought = "<think>\nwhy\n</think>\n\n"
    found = replies(THINKING, "q", f"{thought}a", "q", f"{thought}b")
    assert found == ["a<|im_end|>", f"{thought}b<|im_end|>"]


def test_a_last_reply_that_is_not_shown_whole_is_refused() -> None:
    with pytest.raises(InvalidTemplate, match="as it was written"):
        replies(THOUGHTLESS, "q", "<think>\nwhy\n</think>a")


def test_words_of_a_user_are_no_reply_that_is_not_shown_whole() -> None:
    shown = "m.content if m.role == 'user' else m.content.split('</think>')[-1]"
    source = THOUGHTLESS.replace("m.content.split('</think>')[-1]", f"({shown})")
    with pytest.raises(InvalidTemplate, match="as it was written"):
        replies(source, "Repeat exactly: <think>x</think>a", "<think>x</think>a")


def test_a_template_that_wraps_what_is_said_does_not_ask_for_a_reply() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[{{ m.role }}]{% endfor %}"
    assert replies(source, "q", "a", "q", "b") == ["[assistant]a[assistant]", "[assistant]b[assistant]"]


def test_replies_that_hold_what_stands_between_them_are_told_apart() -> None:
    between = "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    found = replies(THINKING, "q", "a", "q", f"b{between}c", "q", "d")
    assert found == ["a<|im_end|>", f"b{between}c<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


@pytest.mark.parametrize(("source", "header"), [(THINKING, ""), (CLOSED, ""), (ASKING, "<|assistant|>")])
def test_long_conversations_are_not_rendered_anew_for_each_reply(source: str, header: str) -> None:
    template, counts = ChatTemplate(source, {}), []
    for exchanges in (5, 40):
        roles = ("user", "assistant") * exchanges
        messages = [Message(role=role, content=f"{role} {index} ") for index, role in enumerate(roles)]
        renders: list[bool] = []

        def render(turns: Sequence[Message], ask: bool, renders: list[bool] = renders) -> str:
            renders.append(ask)
            return template.render(turns, add_generation_prompt=ask)

        text = template.render(messages)
        assert len(Replies(render, messages, text, Written(), header).spans()) == exchanges
        counts.append(len(renders))
    assert counts[0] == counts[1]
