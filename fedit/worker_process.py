"""``python -m fedit.worker_process``: a worker that serves requests on standard input until it ends."""

import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

from fedit.process import set_environment, silence_libraries

if TYPE_CHECKING:
    from fedit.engines.frames import Header
    from fedit.types import Tensors


def main() -> None:
    """Serve until standard input ends: there is nothing more to do, or whoever started this process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the parent decides
    # Only frames may reach the pipe: what anything prints goes where errors go.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    set_environment()
    silence_libraries()
    from fedit.serving import serve

    serve(_requests(sys.stdin.buffer), answers)


def _requests(stream: BinaryIO) -> "queue.SimpleQueue[tuple[Header, Tensors]]":
    """Return a queue of the frames that come; read apart, so that the end of the pipe is noticed while at work."""
    from fedit.engines.frames import FrameError, read_frame

    frames: queue.SimpleQueue[tuple[Header, Tensors]] = queue.SimpleQueue()

    def read() -> None:
        try:
            while (frame := read_frame(stream)) is not None:
                frames.put(frame)
        except FrameError as error:
            print(f"the parent process sent what cannot be read: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return frames


if __name__ == "__main__":
    main()
