"""Each family's conversations: what counts is what the assistant writes, in every turn, with its end token."""

import json
from pathlib import Path

import pytest

from modelkit import scratch
from modelkit.chat import IGNORED, ChatEncoder
from modelkit.datasets import Message
from modelkit.loading import load_config, load_tokenizer

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say «yes» 123"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "No, 日本."},
]


@pytest.mark.parametrize("family", scratch.FAMILIES)
def test_replies_are_labelled_and_end(tmp_path: Path, family: str) -> None:
    corpus = [Path(json.__file__).read_text()]
    built = scratch.build(tmp_path / "m", family=family, hidden_size=32, layers=1, vocab_size=320, corpus=corpus)
    config = load_config(built.directory)
    tokenizer = load_tokenizer(built.directory, config)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    (row,) = ChatEncoder(tokenizer, max_length=512, stop_ids=ends).encode([CONVERSATION])
    labelled = row.labels != IGNORED
    assert (row.labels[labelled] == row.input_ids[labelled]).all()
    runs = "".join("x" if mark else " " for mark in labelled).split()
    assert len(runs) == 2
    text = tokenizer.decode(row.input_ids[labelled], skip_special_tokens=True)
    assert text.replace(" ", "").startswith("Yes.No,日本.")
    closing = [
        int(row.input_ids[at]) for at in range(len(labelled)) if labelled[at] and not labelled[at + 1 : at + 2].any()
    ]
    assert set(closing) <= {*ends, tokenizer.eos_token_id}
    assert (
        tokenizer.unk_token_id is None or tokenizer.unk_token_id in ends or tokenizer.unk_token_id not in row.input_ids
    )
