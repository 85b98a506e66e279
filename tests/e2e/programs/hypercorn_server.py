# A server that takes `Upgrade: h2c`. It says "listening PORT", and answers with the version of HTTP and the path.

import asyncio
import socket

from hypercorn.asyncio import serve
from hypercorn.config import Config


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"{scope['http_version']} {scope['path']}".encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    print("listening", listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    await serve(app, config)


asyncio.run(main())
