"""Training parameters: one table that forms, documents, defaults and checks are drawn from."""

from parameterkit.limits import Limits
from parameterkit.parameter import Parameter
from parameterkit.surfaces import SURFACES, defaults, effective_defaults, ranges, required, shown
from parameterkit.table import BY_NAME, BY_PATH, PARAMETERS

__all__ = [
    "BY_NAME",
    "BY_PATH",
    "PARAMETERS",
    "SURFACES",
    "Limits",
    "Parameter",
    "defaults",
    "effective_defaults",
    "ranges",
    "required",
    "shown",
]
