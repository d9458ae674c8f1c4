"""What evaluations and exports have in common on a terminal: their facts, their table and the files they leave."""

import json as json_module
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from rich.table import Column, Table
from rich.text import Text

from tunesmith.cli import text
from tunesmith.eval.v1.eval_service_pb2 import Evaluation
from tunesmith.export.v1.export_service_pb2 import Export

R = TypeVar("R", Evaluation, Export)


def result_facts(found: Evaluation | Export, more: Mapping[str, str]) -> dict[str, str]:
    """The facts of any result, with more of this kind, by their names."""
    return {
        "id": found.task_id,
        "name": found.name,
        "task": found.spec.source_task_id,
        **more,
        "state": text.state_word(found.state),
        "created": text.moment(found.create_time),
    }


def result_table(found: Iterable[R], more: Mapping[str, Callable[[R], str]]) -> Table:
    """One row for each result, with more columns of this kind by their headings."""
    names = ("name", "task", "state", *more, "created")
    table = Table(Column("id", no_wrap=True, min_width=26), *names, box=None, pad_edge=False)
    for item in found:
        table.add_row(
            item.task_id,
            Text(text.harmless(item.name)),
            Text(text.harmless(item.spec.source_task_id)),
            Text(text.state_word(item.state), style=text.STYLES.get(item.state, "")),
            *(Text(text.harmless(words(item))) for words in more.values()),
            text.moment(item.create_time),
        )
    return table


def tell_fetched(name: str, path: Path, *, json: bool) -> None:
    """Says where a fetched file lies."""
    print(json_module.dumps({"name": name, "path": str(path)}) if json else path, flush=True)
