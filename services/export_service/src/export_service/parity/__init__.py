"""The gate that every export passes: does what was exported compute what was trained?"""

from export_service.parity.checks import Check
from export_service.parity.gate import check

__all__ = ["Check", "check"]
