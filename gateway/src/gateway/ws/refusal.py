"""How a WebSocket is refused before it is open."""

import orjson

from gateway.http import JSON, Request, Send, http_status
from servicekit.errors import TunesmithError


async def refuse(request: Request, send: Send, error: TunesmithError) -> None:
    """Answers a handshake with an error as the training guide's routes have it."""
    headers = [(b"content-type", JSON)]
    await send({"type": "websocket.http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": orjson.dumps({"detail": error.message})})
    # The server complains of a handshake that nobody completed unless the application stays until the connection is
    # gone; it tells so twice, for the answer's end and for the connection's.
    for _ in range(2):
        await request.receive()
