"""One conversation with grpc_server.py: grpc_client.py PORT HOST CA SCENARIO. It says "all well"."""

import os
import queue
import signal
import sys

import grpc

port, host, ca, scenario = sys.argv[1:]
LARGE = 2**22
# Nothing here should take that long: a call that hangs fails. Over a bad link (scripts/over-link) it may.
PATIENCE = 60 * int(os.environ.get("QTUNNEL_TEST_PATIENCE", 1))

with open(ca, "rb") as pem:
    credentials = grpc.ssl_channel_credentials(pem.read())
channel = grpc.secure_channel(
    f"127.0.0.1:{port}",
    credentials,
    options=[
        ("grpc.ssl_target_name_override", host),
        ("grpc.default_authority", f"{host}:{port}"),
        ("grpc.max_receive_message_length", 2**23),
        ("grpc.enable_http_proxy", 0),
    ],
)
echo = channel.unary_unary("/lab.Lab/Echo")
collect = channel.stream_unary("/lab.Lab/Collect")
expand = channel.unary_stream("/lab.Lab/Expand")
chat = channel.stream_stream("/lab.Lab/Chat")
hang = channel.unary_stream("/lab.Lab/Hang")


def expect(code, call):
    try:
        call()
    except grpc.RpcError as err:
        assert err.code() == code, err
        return err
    raise AssertionError(f"{code} did not come")


def unary():
    for size in (0, 1, 100_000):
        assert len(echo(b"x" * size, timeout=PATIENCE)) == size


def client_streaming():
    answer = collect((b"x" * size for size in range(100)), timeout=PATIENCE)
    assert answer == str(list(range(100))).encode(), answer


def server_streaming():
    answers = list(expand(b"1000", timeout=PATIENCE))
    assert answers == [str(number).encode() for number in range(1000)], len(answers)


def bidirectional_streaming():
    questions = queue.Queue()
    answers = chat(iter(questions.get, None), timeout=PATIENCE)
    for number in range(100):
        questions.put(str(number).encode())
        assert next(answers) == str(number).encode()
    questions.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK


def large_messages():
    message = os.urandom(LARGE)
    assert echo(message, timeout=PATIENCE) == message
    messages = [os.urandom(LARGE) for _ in range(4)]
    assert list(chat(iter(messages), timeout=PATIENCE)) == messages


def metadata():
    answer, call = echo.with_call(b"", timeout=PATIENCE, metadata=(("x-asked", "first"),))
    assert ("x-initial", "first") in call.initial_metadata(), call.initial_metadata()
    trailing = [tuple(entry) for entry in call.trailing_metadata()]
    assert ("x-trailing", "last") in trailing and ("x-bytes-bin", b"\x00\xff") in trailing, trailing


def errors():
    fail = channel.unary_unary("/lab.Lab/Fail")
    err = expect(grpc.StatusCode.FAILED_PRECONDITION, lambda: fail(b"", timeout=PATIENCE))
    assert err.details() == "not today: 100 % naïve", err.details()
    assert ("x-reason-bin", b"\x01\x02") in [tuple(entry) for entry in err.trailing_metadata()]

    late = channel.unary_stream("/lab.Lab/FailLate")(b"", timeout=PATIENCE)
    assert next(late) == b"one"
    assert expect(grpc.StatusCode.DATA_LOSS, lambda: next(late)).details() == "after one"

    expect(grpc.StatusCode.UNIMPLEMENTED, lambda: channel.unary_unary("/lab.Lab/None")(b"", timeout=PATIENCE))


def deadline():
    answers = hang(b"", timeout=2)
    assert next(answers) == b"started with a deadline"
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(answers))


def cancellation():
    answers = hang(b"")
    assert next(answers) == b"started"
    answers.cancel()
    expect(grpc.StatusCode.CANCELLED, lambda: next(answers))
    # The other calls of the connection go on.
    assert echo(b"still here", timeout=PATIENCE) == b"still here"


globals()[scenario]()
print("all well")
# Not before somebody has seen what the cancellation did at the other end: closing the channel would
# end the call as well.
if scenario in ("deadline", "cancellation"):
    signal.pause()
