"""The command `python -m loadtests.load`: locust without its web page, against a service that it starts.

    python -m loadtests.load --stages spike --rate 400
    python -m loadtests.load --host http://127.0.0.1:8000

Options that it does not know are passed to locust, such as --stages ramp|spike|soak, --rate and --seconds;
docs/load-testing.md lists them.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.interrupts import exit_code
from loadtests.outputs import REPORTS, shown
from loadtests.processes import end_servers_on_sigterm, free_port, terminate
from loadtests.progress import doing, say
from loadtests.service_process import ROOT, NotStarted, Service, serving

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


CONNECT_SECONDS = 5.0
STOP_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if the run fails or nobody answers, 2 for an invalid option."""
    parsed, rest = _parser().parse_known_args(arguments)
    if problem := _invalid(rest):
        say(f"loadtests: {problem}")
        return 2
    if parsed.host and (problem := _unreachable(parsed.host)):
        say(f"loadtests: {problem}")
        return 1
    started = nullcontext() if parsed.host else serving(["--models-dir", str(parsed.models_dir.resolve())])
    try:
        with started as service:
            return _run_locust(parsed.host or _url(service), parsed, rest)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1


def _invalid(rest: Sequence[str]) -> str | None:
    """What locust objects to in its options, before anything runs."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", *rest, "--list"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stderr.strip().splitlines()
    if run.returncode == 0 or not lines:
        return None
    return lines[-1].partition("error: ")[2] or lines[-1]


def _unreachable(host: str) -> str | None:
    """The reason that no request can reach the host, or None."""
    try:
        parts = urlsplit(host)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if parts.hostname is None or port is None:
            return f"host is {host!r}, expected for instance http://127.0.0.1:8000"
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"nobody answers at {host}: {error}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="", help="URL of a running service (default: start one)")
    add("--models-dir", type=Path, default=ROOT / "models", help="folder of models of the started service")
    add(
        "--workers",
        type=int,
        default=2,
        help="processes that send, next to one that counts; 0 does both in one process (default: 2)",
    )
    add("--reports", type=Path, default=REPORTS / "load", help="folder of the report (default: reports/load)")
    return parser


def _url(service: Service | None) -> str:
    assert service is not None
    return service.url


def _run_locust(host: str, parsed: argparse.Namespace, rest: list[str]) -> int:
    """Run locust in a session of its own, so that Ctrl-C ends it here; a report appears when it is whole."""
    parsed.reports.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parsed.reports) as folder:
        command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", host]
        command += ["--headless", "--only-summary"]
        command += _processes(parsed.workers) if parsed.workers else []
        command += ["--html", f"{folder}/report.html", "--csv", f"{folder}/load", *rest]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            with doing("load"):
                code = process.wait()
        except BaseException:
            terminate(process, STOP_SECONDS)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers that outlive the master
        if (Path(folder) / "report.html").exists():
            for file in Path(folder).iterdir():
                shutil.move(file, parsed.reports / file.name)
            say(f"report: {shown(parsed.reports / 'report.html')}")
    return code


def _processes(workers: int) -> list[str]:
    """A free port on loopback: locust's default is fixed, so two runs collide, and open to the network."""
    port = str(free_port())
    here = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return ["--processes", str(workers), *here]


if __name__ == "__main__":
    end_servers_on_sigterm()
    sys.exit(exit_code(main))
