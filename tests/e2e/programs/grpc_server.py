"""A gRPC server of bytes, without generated code. It says "listening PORT" and what befalls Hang."""

import threading
from concurrent import futures

import grpc


def echo(request, context):
    sent = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", sent.get("x-asked", "")),))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-bytes-bin", b"\x00\xff")))
    return request


def collect(requests, context):
    return str([len(request) for request in requests]).encode()


def expand(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def chat(requests, context):
    yield from requests


def hang(request, context):
    ended = threading.Event()

    # Said here and not below: a call that is cancelled right after its message is not gone on with.
    def end():
        print("the hanging call has ended")
        ended.set()

    context.add_callback(end)
    remaining = context.time_remaining()
    yield b"started with a deadline" if remaining is not None and remaining < 60 else b"started"
    ended.wait()


def fail(request, context):
    context.set_trailing_metadata((("x-reason-bin", b"\x01\x02"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 % naïve")


def fail_late(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "after one")


METHODS = {
    "/lab.Lab/Echo": grpc.unary_unary_rpc_method_handler(echo),
    "/lab.Lab/Collect": grpc.stream_unary_rpc_method_handler(collect),
    "/lab.Lab/Expand": grpc.unary_stream_rpc_method_handler(expand),
    "/lab.Lab/Chat": grpc.stream_stream_rpc_method_handler(chat),
    "/lab.Lab/Hang": grpc.unary_stream_rpc_method_handler(hang),
    "/lab.Lab/Fail": grpc.unary_unary_rpc_method_handler(fail),
    "/lab.Lab/FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
}


class Lab(grpc.GenericRpcHandler):
    def service(self, details):
        return METHODS.get(details.method)


server = grpc.server(
    futures.ThreadPoolExecutor(8),
    handlers=[Lab()],
    options=[("grpc.max_receive_message_length", 2**23), ("grpc.so_reuseport", 0)],
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("listening", port)
server.wait_for_termination()
