"""How a WebSocket is refused before it is open."""

import orjson

from gateway.http import JSON, Send, http_status
from servicekit.errors import TunesmithError


async def refuse(send: Send, error: TunesmithError) -> None:
    """Answers a handshake with an error as the training guide's routes have it."""
    headers = [(b"content-type", JSON)]
    await send({"type": "websocket.http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": orjson.dumps({"detail": error.message})})
