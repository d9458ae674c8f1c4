"""What a task reads stays in the caches of the scratch space until it has ended."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles


class Checked(Protocol):
    """A checked specification: where its base model and data lie, None for what it has not."""

    model_dir: Path | None
    dataset: DatasetFiles | None


@contextlib.contextmanager
def holding(checked: Checked, cache: DataCache, models: BaseModels) -> Iterator[None]:
    """Within it, what a checked specification stands for stays in the caches.

    Raises FileNotFoundError when something has left them already: check again, which makes it again.
    """
    data = checked.dataset
    files = [path for path in (data.train, data.validation, data.test) if path] if data else []
    with contextlib.ExitStack() as held:
        held.enter_context(cache.holding(*files))
        if models.conversions is not None and checked.model_dir is not None:
            held.enter_context(models.conversions.holding(checked.model_dir))
        yield
