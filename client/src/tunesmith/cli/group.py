"""The root command: turns errors into one message and an exit code."""

from typing import Any

import typer
from typer.core import TyperGroup


class Root(TyperGroup):
    """Runs a subcommand and reports what it raises."""

    def invoke(self, ctx: Any) -> Any:
        """Invokes the subcommand; errors of the platform become an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            from tunesmith.cli.failures import report

            code = report(error)
            if code is None:
                raise
            raise typer.Exit(code) from None
