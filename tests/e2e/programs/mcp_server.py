# An MCP server over streamable HTTP. It says "listening PORT".

import socket

import uvicorn
from mcp.server.fastmcp import FastMCP

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
# As a server on this machine it refuses hosts and origins that are not this machine's.
server = FastMCP("adder", host="127.0.0.1", port=port)


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


print("listening", port)
config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
