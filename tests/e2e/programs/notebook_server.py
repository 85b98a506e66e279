# A Jupyter server without a front end: notebook_server.py DIRECTORY. It says "listening PORT".

import sys

from jupyter_server.serverapp import ServerApp


class Server(ServerApp):
    def start_ioloop(self):
        # Behind the callback that binds the port.
        self.io_loop.add_callback(print, "listening", self.port)
        super().start_ioloop()


Server.launch_instance(
    [
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        "--ServerApp.allow_root=True",
        "--ServerApp.open_browser=False",
        "--IdentityProvider.token=secret",
        f"--ServerApp.root_dir={sys.argv[1]}",
    ]
)
