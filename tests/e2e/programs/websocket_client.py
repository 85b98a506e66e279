"""Visit an echo server through 127.0.0.1: websocket_client.py URL PORT [CA]. It says "all well"."""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(url, port, ca=None):
    tls = ssl.create_default_context(cafile=ca) if ca else None

    def dial():
        return connect(
            url, host="127.0.0.1", port=int(port), ssl=tls, proxy=None, max_size=2**21, subprotocols=["other", "lab"]
        )

    async with dial() as connection:
        assert connection.subprotocol == "lab", connection.subprotocol
        await connection.send("grüße")
        assert await connection.recv() == "grüße"
        await connection.send(b"\x00\xff" * 7)
        assert await connection.recv() == b"\x00\xff" * 7
        for _ in range(3):
            large = os.urandom(2**20)
            await connection.send(large)
            assert await connection.recv() == large
        await connection.send(["in ", "three ", "fragments"])
        assert await connection.recv() == "in three fragments"
        await (await connection.ping(b"are you there"))
        await connection.close(4002, "the client has enough")

    async with dial() as connection:
        await connection.send("close 4001 the server has enough")
        try:
            await connection.recv()
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "the server has enough"), closed
        else:
            raise AssertionError("the server did not close")
    print("all well")


asyncio.run(main(*sys.argv[1:]))
