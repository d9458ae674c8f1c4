"""The tunesmith command."""

from tunesmith.cli.app import app

__all__ = ["app"]
