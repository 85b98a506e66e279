"""Serve one connection at a time, as Python's http.server does, and say "listening PORT".

Each answer takes as many seconds as the argument says."""

import http.server
import sys
import time


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Page)
print("listening", server.server_port, flush=True)
server.serve_forever()
