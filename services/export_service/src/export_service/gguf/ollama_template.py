"""A chat template in Ollama's language, found by looking at what the template writes around each message.

Templates are programs, so they are not translated but observed: conversations of marked messages are rendered, the text
between the marks is taken apart, and the result is compared with more conversations. One that does not write every
message the same way has no equivalent.
"""

import os
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
        if turns is None or any(turns.render(roles) != _rendered(template, roles) for roles in CHECKED):
            return None
    except InvalidTemplate:
        return None
    pieces = [turns.head, turns.reply, *turns.before.values(), *turns.after.values()]
    if any("{{" in piece or '"""' in piece for piece in pieces):
        return None
    return _written(turns, skip)


def _rendered(template: ChatTemplate, roles: Sequence[str]) -> str:
    messages = [Message(role=role, content=MARKS[role]) for role in roles]
    return template.render(messages, add_generation_prompt=True)


def _between(text: str, roles: Sequence[str]) -> list[str] | None:
    """The text before, between and after the marks of messages with these roles."""
    pieces = []
    for role in roles:
        piece, mark, text = text.partition(MARKS[role])
        if not mark:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _turns(template: ChatTemplate) -> Turns | None:
    dialogue = _between(_rendered(template, CHECKED[2]), CHECKED[2])
    single = _between(_rendered(template, CHECKED[0]), CHECKED[0])
    instructed = _between(_rendered(template, CHECKED[1]), CHECKED[1])
    if dialogue is None or single is None or instructed is None:
        return None
    start, to_reply, to_user, _ = dialogue
    user = _common_end(start, to_user)
    after_user = os.path.commonprefix([to_reply, single[1]])
    head = start.removesuffix(user)
    own_turn = bool(user) and instructed[1].endswith(user)
    beginning = head if own_turn else start
    if not instructed[0].startswith(beginning):
        return None
    return Turns(
        head=head,
        before={
            SYSTEM: instructed[0].removeprefix(head),
            USER: user,
            ASSISTANT: to_reply.removeprefix(after_user),
        },
        after={
            SYSTEM: instructed[1].removesuffix(user) if own_turn else instructed[1],
            USER: after_user,
            ASSISTANT: to_user.removesuffix(user),
        },
        reply=single[1].removeprefix(after_user),
        inlined=not own_turn,
    )


def _common_end(left: str, right: str) -> str:
    return os.path.commonprefix([left[::-1], right[::-1]])[::-1]


def _written(turns: Turns, skip: str) -> str:
    user = turns.before[USER]
    if turns.inlined and user:
        user = f"{{{{ if or (ne $at 1) (not $.System) }}}}{user}{{{{ end }}}}"
    return (
        f"{turns.head.removeprefix(skip)}{{{{ range $at, $_ := .Messages }}}}"
        f'{{{{ if eq .Role "system" }}}}{turns.before[SYSTEM]}{{{{ .Content }}}}{turns.after[SYSTEM]}'
        f'{{{{ else if eq .Role "user" }}}}{user}{{{{ .Content }}}}{turns.after[USER]}'
        f'{{{{ else if eq .Role "assistant" }}}}{turns.before[ASSISTANT]}{{{{ .Content }}}}{turns.after[ASSISTANT]}'
        f"{{{{ end }}}}{{{{ end }}}}{turns.reply}"
    )
