"""An addon for mitmproxy that tells what it sees inside TLS: each WebSocket, and whether the messages
hold one of the words that travel through the tunnel."""

WORDS = [b"GET /", b"open sesame", b"x-forwarded-for", b"blog"]


def websocket_start(flow):
    print("opened", flow.request.path, flush=True)


def websocket_message(flow):
    message = flow.websocket.messages[-1].content
    found = [word.decode() for word in WORDS if word in message]
    print("read", found if found else "nothing", flush=True)
