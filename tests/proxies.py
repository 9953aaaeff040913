"""A link between a site and its server that can be cut: a TCP proxy on this machine."""

import socket
import threading
import time
from contextlib import suppress

IN_FLIGHT = 1.0
"""Seconds after a cut in which what was sent before it still arrives, though no answer comes back."""


class Proxy:
    """Passes bytes between a port of its own and another one of this machine.

    A cut link does what a broken one does: nothing passes, nobody is told, and it goes on when it is whole again.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._left: int | None = None
        self._seconds = 0.0
        self._cut = self._whole = 0.0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_within_upload(self, after: int, seconds: float) -> None:
        """Cut the link for a while once so many more bytes went up."""
        with self._lock:
            self._left, self._seconds = after, seconds

    @property
    def was_cut(self) -> bool:
        """Whether the link was cut, be it whole again or not."""
        return self._cut > 0

    def close(self) -> None:
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._hold(0.0)
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            self._open |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near, 0.0), daemon=True)
            back.start()
            self._pump(near, far, IN_FLIGHT)
            back.join()
            self._open -= {near, far}

    def _pump(self, source: socket.socket, sink: socket.socket, in_flight: float) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if in_flight:
                    self._count(len(content))
                self._hold(in_flight)
                sink.sendall(content)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        with self._lock:
            if self._left is None:
                return
            self._left -= size
            if self._left <= 0:
                self._left = None
                self._cut = time.monotonic()
                self._whole = self._cut + self._seconds

    def _hold(self, in_flight: float) -> None:
        """Wait until the link is whole."""
        while self._cut + in_flight < time.monotonic() < self._whole:
            time.sleep(0.05)
