"""How chaos sees a connection end, with real sockets."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from loadtests.chaos.client import Connection, Hung, Lost, request
from loadtests.chaos.probe import failures, probing
from loadtests.chaos.stops import Fate, fate_of, send

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
ASKED = request("POST", "/x", b"body")


@contextlib.contextmanager
def served_by(serve: Callable[[socket.socket], None], connections: int = 1) -> Iterator[int]:
    """A server that treats each connection in this way, and closes it; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for _ in range(connections):
                connection, _ = listener.accept()
                with connection:
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_responses_are_read_whole_and_in_order() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        for byte in OK + LAST:
            connection.sendall(bytes([byte]))

    with served_by(serve) as port:
        connection = Connection(port)
        first, second = connection.ask(ASKED), connection.receive()
        connection.close()
    assert (first.status, first.body, first.close) == (200, b"ok", False)
    assert (second.status, second.body, second.close) == (200, b"ok", True)


def fate_in(connection: Connection, answers: int) -> Fate:
    """The fate of a request whose connection the server ends. answers: as if it had had so many."""
    sent = send(connection, ASKED)
    with pytest.raises(Lost) as lost:
        connection.receive()
    return fate_of(lost.value, connection, ASKED, sent, answers)


def close_after_reading(connection: socket.socket) -> None:
    connection.recv(1000)


def reset_after_reading(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_in_the_response(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(OK[:-1])


@pytest.mark.parametrize(
    ("serve", "answers", "fate"),
    [
        (close_after_reading, 0, "unanswered"),
        (close_after_reading, 1, "unanswered"),
        (reset_after_reading, 0, "never accepted"),  # as the kernel does with those in the backlog
        (reset_after_reading, 1, "unanswered"),
        (close_in_the_response, 0, "unanswered"),
    ],
)
def test_a_request_sent_before_the_close_is_owed_a_response(
    serve: Callable[[socket.socket], None], answers: int, fate: Fate
) -> None:
    with served_by(serve) as port:
        connection = Connection(port)
        assert fate_in(connection, answers) == fate
        connection.close()


def test_a_request_sent_after_the_close_is_owed_nothing() -> None:
    with served_by(lambda connection: connection.sendall(b"x")) as port:
        connection = Connection(port)
        assert connection.socket.recv(1) == b"x"
        assert connection.socket.recv(1) == b""  # the server has closed
        assert fate_in(connection, 1) == "too late"
        connection.close()


def test_no_response_in_time_is_a_hang() -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass

    with served_by(serve) as port:
        connection = Connection(port, timeout_seconds=0.05)
        with pytest.raises(Hung):
            connection.ask(ASKED)
        connection.close()


def test_bytes_that_are_no_response_are_a_loss() -> None:
    with served_by(lambda connection: connection.sendall(b"garbage\r\n\r\n")) as port:
        connection = Connection(port)
        with pytest.raises(Lost):
            connection.receive()
        connection.close()


def test_a_probe_reports_every_request_that_was_due() -> None:
    answered = threading.Event()

    def serve(connection: socket.socket) -> None:
        for _ in range(5):
            connection.recv(1000)
            connection.sendall(OK)
        answered.set()

    with served_by(serve) as port, probing(port, request("GET", "/"), rate=200) as probe:
        assert answered.wait(30)
    good = [sample for sample in probe.samples if sample.ok]
    assert len(good) == 5
    assert failures(probe.samples) == len(probe.samples) - 5
    assert probe.between(good[1].due, good[4].due) == probe.samples[1:4]
