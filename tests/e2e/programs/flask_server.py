# A Flask application that redirects to itself. It says "listening PORT".

from flask import Flask, make_response, redirect, url_for
from werkzeug.serving import make_server

app = Flask(__name__)


@app.get("/old")
def old():
    return redirect(url_for("new", _external=True))


@app.get("/new/")
def new():
    response = make_response("the new page\n")
    response.headers["Link"] = f'<{url_for("new", _external=True)}>; rel="canonical"'
    return response


server = make_server("127.0.0.1", 0, app, threaded=True)
print("listening", server.port)
server.serve_forever()
