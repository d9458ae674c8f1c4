"""What a plan gives is what the template gives, and no plan is made of a template that looks at contents."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkit.datasets import Message
from modelkit.scratch.families import FAMILIES
from modelkit.templates import FALLBACK, PLAN_AFTER, ChatTemplate

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
JOINED = PLAIN.replace("{{ m.content }}", "{{ '[' ~ m['content'].rstrip() + ']' }}")
MARKED = PLAIN.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
SYSTEM_FIRST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if m.role == 'user' %}[INST] {% if loop.first and system %}<<SYS>>{{ system }}<</SYS>>{% endif %}"
    "{{ m.content }} [/INST]{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PLANNED = [PLAIN, TRIMMED, JOINED, MARKED, SYSTEM_FIRST, FALLBACK]
LOOKING = [
    "{% if 'x' in m.content %}y{% endif %}",
    "{{ m.content | length }}",
    "{{ m.content | replace('x', 'y') }}",
    "{{ m.content | upper }}",
    "{{ m.content.split('</think>')[-1] }}",
    "{{ m.content[:3] }}",
    "{{ m | tojson }}",
    "{{ m }}",
    "{% if m.content == 'a' %}y{% endif %}",
    "{% if m.content.startswith('a') %}y{% endif %}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% set x %}{{ m.content }}{% endset %}{{ x | length }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) | length }}",
    "{{ {'k': m.content} }}",
    "{{ [m.content] | join('-') }}",
    "{{ m.content * 2 }}",
    "{{ (m.content ~ 'a') | trim }}",
    "{{ m.content | trim('x') }}",
]
CONTENT = st.text(alphabet=st.sampled_from("ab \n\t<|é\"'{}%0:raw\u3000"), min_size=1, max_size=8)


def conversation(*contents: str, system: bool = False) -> list[Message]:
    roles = (["system"] if system else []) + ["user", "assistant"] * 4
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def planned(source: str, roles: list[Message]) -> Any:
    template = ChatTemplate(source, {"eos_token": "</s>", "bos_token": "<s>"})
    plans = [template.plan(roles) for _ in range(PLAN_AFTER)]
    assert plans[0] is None
    return template, plans[-1]


@pytest.mark.parametrize("source", [*PLANNED, *(family.chat_template for family in FAMILIES.values())])
@pytest.mark.parametrize("system", [False, True])
def test_templates_that_lay_out_are_planned_exactly(source: str, system: bool) -> None:
    count = 5 if system else 4
    template, plan = planned(source, conversation(*"abcde"[:count], system=system))
    assert plan is not None

    @settings(max_examples=40, deadline=None)
    @given(st.lists(CONTENT.filter(str.strip), min_size=count, max_size=count))
    def same(contents: list[str]) -> None:
        messages = conversation(*contents, system=system)
        text, spans = plan.fill(messages)
        assert text == template.render(messages)
        assert (text, spans) == template.reply_spans(messages)

    same()


@pytest.mark.parametrize("look", LOOKING)
def test_a_template_that_looks_at_contents_is_rendered(look: str) -> None:
    source = "{% for m in messages %}" + look + "{{ m.role }}{{ m.content }}<|end|>{% endfor %}"
    messages = conversation("a", "b")
    _, plan = planned(source, messages)
    assert plan is None


BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
ENDED = PLAIN.replace("<|assistant|>{% endif %}", "<|assistant|>{% else %}{{ eos_token }}{% endif %}")
SPACED = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("source", [BARE, BARE.replace("m.content", "m.content | trim"), ENDED, SPACED])
def test_replies_end_where_they_do_in_the_template_whatever_white_space_they_have(source: str) -> None:
    messages = conversation("a", "b", "c", "d")
    template, plan = planned(source, messages)
    assert plan is not None
    for contents in (("a", " b ", "c", "d\n"), ("a", "\nb", "c ", " d")):
        messages = conversation(*contents)
        assert plan.fill(messages) == template.reply_spans(messages)


def test_blank_contents_are_rendered() -> None:
    template, plan = planned(PLAIN, conversation("a", "b"))
    assert plan is not None
    assert template.plan(conversation(" \n", "b")) is None
    assert template.plan(conversation("", "b")) is None
