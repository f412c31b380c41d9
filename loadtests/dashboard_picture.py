"""The command `python -m loadtests.dashboard_picture`: draw docs/dashboard.png.

Starts the service and a real Prometheus with the chart's rules, loads the service with locust's mix, and
draws helm/dashboards/inkserve.json from Prometheus's answers to its queries. Requires Debian's package
`prometheus`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests import load
from loadtests.dashboard import Span
from loadtests.interrupts import exit_code
from loadtests.outputs import add_output_arguments, chosen_output, replacing, shown
from loadtests.panels import draw
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import say
from loadtests.prometheus import NotListening, config, running
from loadtests.service_process import ROOT, NotStarted, Service, serving

PICTURE = ROOT / "docs" / "dashboard.png"
RULES = ROOT / "helm" / "rules" / "inkserve.yaml"
SCRAPE_SECONDS = 5
STAGES, RATE, SECONDS = "spike", 200.0, 360.0
JOB, NAMESPACE = "inkserve", "serving"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return locust's exit code, or 1 if the service or Prometheus did not start."""
    parsed = command_line().parse_args(arguments)
    try:
        with serving(["--models-dir", str(parsed.models_dir.resolve())]) as service:
            return _watch(service, parsed)
    except (NotStarted, NotListening) as error:
        print(error, file=sys.stderr)
        return 1


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.dashboard_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models-dir", type=Path, default=ROOT / "models", help="folder of models (default: models/)")
    add("--stages", default=STAGES, help="load over time, see docs/load-testing.md (default: spike)")
    add("--rate", type=float, default=RATE, help="highest requests per second (default: 200)")
    add("--seconds", type=float, default=SECONDS, help="seconds of load (default: 360)")
    add_output_arguments(parser, PICTURE, what="PNG file to write")
    return parser


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run shows the load that the published picture is about, for as long."""
    return (parsed.stages, parsed.rate) == (STAGES, RATE) and bool(parsed.seconds >= SECONDS)


def _watch(service: Service, parsed: argparse.Namespace) -> int:
    output = chosen_output(parsed, PICTURE, full=is_full_run(parsed))
    target = f"127.0.0.1:{service.port}"
    scraped = config(JOB, target, {"namespace": NAMESPACE}, RULES, interval_seconds=SCRAPE_SECONDS)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), scraped) as prometheus:
        time.sleep(2 * SCRAPE_SECONDS)  # the first scrapes see an idle service
        start = time.time()
        options = ["--stages", parsed.stages, "--rate", str(parsed.rate), "--seconds", str(parsed.seconds)]
        code = load.main(["--host", service.url, *options])
        if code == 0:
            # Until locust starts to stop, so that the figures show the load and not its end.
            with replacing(output) as part:
                draw(prometheus, Span(start, start + parsed.seconds, SCRAPE_SECONDS), part)
            say(f"picture: {shown(output)}")
        return code


if __name__ == "__main__":
    end_servers_on_sigterm()
    sys.exit(exit_code(main))
