"""Serve the repositories below a directory: git_server.py DIRECTORY. It says "listening PORT".

It hands each request to `git http-backend` as CGI (RFC 3875) and streams both ways.
"""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

root = os.path.abspath(sys.argv[1])


class Bridge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "REMOTE_USER": "lab",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": self.headers.get("Content-Length", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        backend = subprocess.Popen(
            ["git", "http-backend"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        feeder = threading.Thread(target=self.feed, args=(backend.stdin,))
        feeder.start()
        self.answer(backend.stdout)
        feeder.join()
        backend.wait()

    do_POST = do_GET

    def feed(self, sink):
        with sink:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    self.pass_on(size, sink)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
            else:
                self.pass_on(int(self.headers.get("Content-Length", 0)), sink)

    def pass_on(self, size, sink):
        while size:
            piece = self.rfile.read(min(size, 1 << 16))
            if not piece:
                raise EOFError("the request is cut off")
            size -= len(piece)
            sink.write(piece)

    def answer(self, source):
        status, headers = 200, []
        while line := source.readline().rstrip(b"\r\n").decode("latin-1"):
            name, _, value = line.partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            else:
                headers.append((name, value.strip()))
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := source.read1(1 << 16):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Bridge)
print("listening", server.server_port, flush=True)
server.serve_forever()
