# Use a tool of an MCP server: mcp_client.py URL. Names below tunnel.test are on this machine.

import asyncio
import socket
import sys
from urllib.parse import urlsplit

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

resolve = socket.getaddrinfo


def here(host, *rest, **named):
    text = host.decode() if isinstance(host, bytes) else host
    return resolve("127.0.0.1" if text and text.endswith(".tunnel.test") else host, *rest, **named)


socket.getaddrinfo = here


async def main(url):
    parts = urlsplit(url)
    origin = {"Origin": f"{parts.scheme}://{parts.netloc}"}
    async with streamablehttp_client(url, headers=origin) as (receive, send, _):
        async with ClientSession(receive, send) as session:
            await session.initialize()
            result = await session.call_tool("add", {"a": 20, "b": 22})
            print("added", result.content[0].text)


asyncio.run(main(sys.argv[1]))
