"""The command `python -m loadtests.load`: locust without its page, against the service it starts itself.

    python -m loadtests.load --stages spike --rate 400
    python -m loadtests.load --host http://127.0.0.1:8000

What it does not know itself goes to locust.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from loadtests.processes import free_port
from loadtests.service_process import ROOT, NotStarted, Service, serving

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns locust's exit code: 1 if any answer was wrong."""
    parsed, rest = _parser().parse_known_args(arguments)
    started = nullcontext() if parsed.host else serving(["--models-dir", str(parsed.models_dir.resolve())])
    try:
        with started as service:
            return _run_locust(parsed.host or _url(service), parsed, rest)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="", help="a running service; else one is started")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models", help="of the one that is started")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that send, besides the one that counts; 0 for one that does both; default 2",
    )
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "load", help="for HTML and CSV")
    return parser


def _url(service: Service | None) -> str:
    assert service is not None
    return service.url


def _run_locust(host: str, parsed: argparse.Namespace, rest: list[str]) -> int:
    reports = parsed.reports
    reports.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", host]
    command += ["--headless", "--only-summary"]
    command += _processes(parsed.workers) if parsed.workers else []
    command += ["--html", str(reports / "report.html"), "--csv", str(reports / "load"), *rest]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(f"report: {reports / 'report.html'}", file=sys.stderr)
    return code


def _processes(workers: int) -> list[str]:
    """Locust's own port is fixed and open to the network; two runs at once, or a firewall, would mind."""
    port = str(free_port())
    here = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return ["--processes", str(workers), *here]


if __name__ == "__main__":
    sys.exit(main())
