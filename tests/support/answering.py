"""A plain server whose answers the test decides, one request at a time."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

Answer = Callable[[socketserver.BaseRequestHandler], bool]


@contextmanager
def answering(answer: Answer, request_bytes: int) -> Iterator[int]:
    """Call `answer` for each request, on a thread per connection, until it returns False; yields the port.

    request_bytes: the size of every request.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self.request.recv(request_bytes, socket.MSG_WAITALL) and answer(self):
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
