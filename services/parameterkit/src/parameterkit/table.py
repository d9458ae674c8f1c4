"""Every parameter of a fine-tuning of a language model, in the order that a form shows them."""

from collections.abc import Mapping
from types import MappingProxyType

from parameterkit.parameter import CATEGORIES, Parameter
from parameterkit.rows import adapters, data, hardware, keeping, training

_ROWS = (*data.ROWS, *training.ROWS, *keeping.ROWS, *adapters.ROWS, *hardware.ROWS)

PARAMETERS: tuple[Parameter, ...] = tuple(sorted(_ROWS, key=lambda row: CATEGORIES.index(row.category)))
# Parameters by their name and by each alias.
BY_NAME: Mapping[str, Parameter] = MappingProxyType({name: row for row in PARAMETERS for name in row.names})
# The row that sets a field in its own words, by path.
BY_PATH: Mapping[str, Parameter] = MappingProxyType(
    {path: row for row in PARAMETERS if not row.switch for path in (row.path, *row.also)}
)
