"""Starts the gateway: python -m gateway."""

from gateway.settings import GatewaySettings
from gateway.setup import run
from servicekit import runtime
from servicekit.settings import load

if __name__ == "__main__":
    settings = load(GatewaySettings)
    runtime.run(lambda: run(settings), settings.log_level)
