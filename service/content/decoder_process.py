"""A decoder: a process that decodes one body at a time, within bounds on its CPU time and memory.

Started by `service.content.decoders` as `python -m service.content.decoder_process SECONDS BYTES`. The kernel
ends it by SIGPROF if a body takes more CPU time; more memory is a MemoryError.
"""

import logging
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

from service.content import decoder_frames
from service.content.body_jobs import Job
from service.content.decoder_frames import Log, Result
from service.errors import InvalidInput, PayloadTooLarge, RequestError
from service.memory import map_large_blocks

NICENESS = 5
"""Decoding gives way to the event loop where both want a core."""


def main() -> None:
    """Answer requests on stdin until it ends."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    os.nice(NICENESS)
    warnings.simplefilter("ignore")
    map_large_blocks()
    log = _collect_logs()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    np.linalg.lstsq(np.eye(2), np.ones(2))  # OpenBLAS allocates its buffers now, and exits if it cannot later
    _silence_codecs()
    limit = _data_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    replies.write(decoder_frames.READY)
    replies.flush()
    while (request := decoder_frames.read_request(requests.read)) is not None:
        job, body = request
        del request
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        result = _run(job, body)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for piece in decoder_frames.pack_reply(result, log):
            replies.write(piece)
        replies.flush()
        log.clear()
        del body, result, piece


def _run(job: Job, body: bytes) -> Result | RequestError:
    try:
        return job.run(body)
    except RequestError as error:
        return error
    except MemoryError:
        return PayloadTooLarge("body needs too much memory to decode, expected a smaller one")
    except Exception as error:  # whatever the body is, it is the caller's
        logging.getLogger(__name__).warning("a body cannot be decoded", exc_info=error)
        return InvalidInput("body cannot be decoded, expected what its Content-Type declares")


def _silence_codecs() -> None:
    """Discard what C libraries write to stderr; Python still writes there.

    libtiff prints a line for each broken file: in no format of ours, and if nobody reads stderr it blocks.
    """
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _collect_logs() -> Log:
    """Keep what is logged, for the service to log in its own format."""
    log: Log = []
    formatter = logging.Formatter("%(message)s")

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.append((record.levelno, formatter.format(record)[-4000:]))

    logging.basicConfig(level=logging.WARNING, handlers=[Collector()])
    return log


def _data_bytes() -> int:
    """Return the private memory that the process has mapped so far, which RLIMIT_DATA counts too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
