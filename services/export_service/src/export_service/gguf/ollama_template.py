"""A chat template in Ollama's language, found by looking at what the template writes around each message.

Templates are programs, so they are not translated but observed: conversations of marked messages are rendered, the text
between the marks is taken apart, and the result is compared with more conversations. One that does not write every
message the same way has no equivalent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modelkit.datasets import Message
from modelkit.errors import InvalidTemplate
from modelkit.templates import ChatTemplate

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
MARKS = {SYSTEM: "Sy5tem", USER: "U5er", ASSISTANT: "A55istant"}
CHECKED = (
    (USER,),
    (SYSTEM, USER),
    (USER, ASSISTANT, USER),
    (SYSTEM, USER, ASSISTANT, USER),
    (SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """What is written before and after the messages of each role, at the beginning of all and before a reply.

    With inlined the system message stands within the first turn of the user, whose beginning it then has.
    """

    head: str
    before: dict[str, str]
    after: dict[str, str]
    reply: str
    inlined: bool

    def render(self, roles: Sequence[str]) -> str:
        """The text of marked messages with these roles, as Ollama would write it."""
        text = self.head
        for at, role in enumerate(roles):
            begun = self.inlined and role == USER and at == 1 and roles[0] == SYSTEM
            text += ("" if begun else self.before[role]) + MARKS[role] + self.after[role]
        return text + self.reply


def ollama_template(template: ChatTemplate, *, skip: str = "") -> str | None:
    """The template in the language of Go's text/template as Ollama uses it, or None. skip is left out at the beginning,
    where Ollama puts it by itself."""
    try:
        turns = _turns(template)
        if any(turns.render(roles) != _rendered(template, roles) for roles in CHECKED):
            return None
    except InvalidTemplate:
        return None
    pieces = [turns.head, turns.reply, *turns.before.values(), *turns.after.values()]
    if any("{{" in piece or '"""' in piece for piece in pieces):
        return None
    return _written(turns, skip)


def _rendered(template: ChatTemplate, roles: Sequence[str], *, asks: bool = True) -> str:
    messages = [Message(role=role, content=MARKS[role]) for role in roles]
    return template.render(messages, add_generation_prompt=asks)


def _between(template: ChatTemplate, roles: Sequence[str], *, asks: bool = True) -> list[str]:
    """The text before, between and after the marks of messages with these roles; short where a mark is missing."""
    text, pieces = _rendered(template, roles, asks=asks), []
    for role in roles:
        piece, _, text = text.partition(MARKS[role])
        pieces.append(piece)
    return [*pieces, text]


def _turns(template: ChatTemplate) -> Turns:
    start, to_reply, to_user, end = _between(template, (USER, ASSISTANT, USER))
    after_user = _between(template, (USER,), asks=False)[-1]
    after_assistant = _between(template, (USER, ASSISTANT), asks=False)[-1]
    before_user = to_user.removeprefix(after_assistant)
    head = start.removesuffix(before_user)
    system, to_question, _ = _between(template, (SYSTEM, USER))
    own_turn = bool(before_user) and to_question.endswith(before_user)
    return Turns(
        head=head,
        before={
            SYSTEM: system.removeprefix(head),
            USER: before_user,
            ASSISTANT: to_reply.removeprefix(after_user),
        },
        after={
            SYSTEM: to_question.removesuffix(before_user) if own_turn else to_question,
            USER: after_user,
            ASSISTANT: after_assistant,
        },
        reply=end.removeprefix(after_user),
        inlined=not own_turn,
    )


def _written(turns: Turns, skip: str) -> str:
    system, user = turns.before[SYSTEM], turns.before[USER]
    if skip and not turns.head:
        again = f"{{{{ if ne $at 0 }}}}{skip}{{{{ end }}}}"
        system, user = (again + text.removeprefix(skip) if text.startswith(skip) else text for text in (system, user))
    if turns.inlined and user:
        user = f"{{{{ if or (ne $at 1) (not $.System) }}}}{user}{{{{ end }}}}"
    return (
        f"{turns.head.removeprefix(skip)}{{{{ range $at, $_ := .Messages }}}}"
        f'{{{{ if eq .Role "system" }}}}{system}{{{{ .Content }}}}{turns.after[SYSTEM]}'
        f'{{{{ else if eq .Role "user" }}}}{user}{{{{ .Content }}}}{turns.after[USER]}'
        f'{{{{ else if eq .Role "assistant" }}}}{turns.before[ASSISTANT]}{{{{ .Content }}}}{turns.after[ASSISTANT]}'
        f"{{{{ end }}}}{{{{ end }}}}{turns.reply}"
    )
