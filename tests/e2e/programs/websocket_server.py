"""An echo server. It says "listening PORT", and "closed CODE REASON" for each connection that ends.

A text "close CODE REASON" makes it close the connection that way.
"""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(connection):
    try:
        async for message in connection:
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                await connection.close(int(code), reason)
            else:
                await connection.send(message)
    except ConnectionClosed:
        pass
    print("closed", connection.close_code, connection.close_reason)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=2**21, subprotocols=["lab"]) as server:
        print("listening", server.sockets[0].getsockname()[1])
        await server.serve_forever()


asyncio.run(main())
