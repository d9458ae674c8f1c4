"""How every service process runs: uvloop, one log format, and an event that TERM and INT set."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Sends log records to stderr in one format."""
    logging.basicConfig(level=level, format=LOG_FORMAT, stream=sys.stderr)


def shutdown_event() -> asyncio.Event:
    """An event that TERM and INT set; call it once in the main task."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def run(main: Callable[[], Coroutine[Any, Any, None]], log_level: str = "INFO") -> None:
    """Runs a service's main coroutine to its end on uvloop."""
    configure_logging(log_level)
    uvloop.run(main())
