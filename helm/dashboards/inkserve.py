"""Writes inkserve.json, the service's Grafana dashboard, next to this file: `make dashboard`.

The objectives' queries use the recording rules of ../rules/inkserve.yaml, all others the metrics of
service/observability/metrics.py.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

FILE = Path(__file__).with_suffix(".json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

S = 'namespace="$namespace",job="$job"'
INFERENCE = f'{S},route=~"/classify|/generate"'
RATE = "[$__rate_interval]"

Queries = dict[str, str]
"""Expressions by legend."""


def quantiles(metric: str, selector: str, by: str, *, name: str = "") -> Queries:
    """Return a histogram's median and 99th percentile for each value of a label."""
    rates = f"sum by ({by}, le) (rate(inkserve_{metric}_bucket{{{selector}}}{RATE}))"
    return {
        f"{name}p{percent} {{{{{by}}}}}": f"histogram_quantile({percent / 100:g}, {rates})"
        for percent in (50, 99)
    }


def rate(metric: str, by: str, selector: str = S) -> str:
    """Return a counter's rate for each value of a label."""
    return f"sum by ({by}) (rate(inkserve_{metric}{{{selector}}}{RATE}))"


def targets(queries: Queries, *, instant: bool = False) -> list[Builder[Dataquery]]:
    """Return the queries as a panel's targets."""
    built: list[Builder[Dataquery]] = []
    for index, (legend, expression) in enumerate(queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + index))
        built.append(query.instant() if instant else query.range())
    return built


def graph(title: str, unit: str, queries: Queries, text: str, *, span: int = 8) -> timeseries.Panel:
    """Return a panel of lines over time, by default a third of the width."""
    panel = timeseries.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    # By default the library hides the legend, which names the lines.
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    panel.legend(legend.placement(LegendPlacement.BOTTOM))
    every_line = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return panel.span(span).height(8).fill_opacity(8).min(0).tooltip(every_line).targets(targets(queries))


def number(title: str, unit: str, expression: str, text: str) -> stat.Panel:
    """Return a panel with one figure, a sixth of the width."""
    panel = stat.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel.graph_mode(BigValueGraphMode.NONE)
    return panel.span(4).height(4).targets(targets({"": expression}, instant=True))


def burn(title: str, ratio: str, budget: str, text: str) -> timeseries.Panel:
    """Return a panel of how many times faster than allowed a budget is spent, with the alerts' thresholds."""
    windows = ("1h", "6h", "1d", "3d")
    queries = {window: f"job:{ratio}:ratio_rate{window}{{{S}}} / {budget}" for window in windows}
    lines = [(None, "green"), (1, "yellow"), (6, "orange"), (14.4, "red")]
    steps = [Threshold(value, color) for value, color in lines]
    return (
        graph(title, "none", queries, text, span=8)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.LINE))
    )


def waiting(what: str) -> timeseries.Panel:
    """Return a panel of the longest queue of any pod, because each pod has its own limits."""
    fullest = {"{{model}}": f"max by (model) (inkserve_{what}_waiting{{{S}}})"}
    text = f"In the pod with most {what} queued. Beyond max_queue_{what} a pod rejects requests with 429."
    return graph(f"{what.capitalize()} queued", "none", fullest, text, span=6)


def overview(board: dashboard.Dashboard) -> None:
    """Add the service's state at a glance."""
    good = f"sum(rate(inkserve_good_requests_total{{{INFERENCE}}}{RATE}))"
    every = f"sum(rate(inkserve_requests_total{{{INFERENCE}}}{RATE}))"
    in_queues = f"sum(inkserve_rows_waiting{{{S}}})"
    board.with_row(dashboard.Row("Overview"))
    for panel in (
        number("Ready pods", "none", f"sum(inkserve_ready{{{S}}})", "Pods that accept new requests."),
        number("Requests", "reqps", every, "To /classify and /generate."),
        number("Goodput", "reqps", good, "2xx responses within the latency objective."),
        number("Good fraction", "percentunit", f"{good} / {every}", "Goodput as a fraction of all requests."),
        number("Rows", "rowsps", f"sum(rate(inkserve_rows_total{{{S}}}{RATE}))", "Rows run."),
        number("Rows queued", "none", in_queues, "In the queues of all models and pods."),
    ):
        board.with_panel(panel)


def objectives(board: dashboard.Dashboard) -> None:
    """Add the ratios that the alerts watch."""
    spent = "1 spends the month's budget in a month, 14.4 in two days."
    board.with_row(dashboard.Row("Objectives"))
    board.with_panel(burn("Error budget burn", "inkserve_request_errors", "0.001", f"5xx responses. {spent}"))
    board.with_panel(burn("Shed budget burn", "inkserve_shed_requests", "0.01", f"Shed with 429. {spent}"))
    board.with_panel(
        burn("Latency budget burn", "inkserve_slow_requests", "0.01", f"Slower than 0.5 s. {spent}")
    )


def requests(board: dashboard.Dashboard) -> None:
    """Add what clients see."""
    statuses = {"{{status}}": rate("requests_total", "status", INFERENCE)}
    rejected = {"{{reason}}": rate("rejected_requests_total", "reason")}
    latency = quantiles("request_seconds", INFERENCE, "route")
    board.with_row(dashboard.Row("Requests"))
    for panel in (
        graph("Requests by status", "reqps", statuses, "499: the client disconnected before its response."),
        graph("Latency", "s", latency, "From a request's arrival to its response."),
        graph("Rejected by reason", "reqps", rejected, "Shed, expired, not ready, stopping, abandoned."),
    ):
        board.with_panel(panel)


def batching(board: dashboard.Dashboard) -> None:
    """Add where the time goes and how batches form."""
    mean = f"{rate('batch_rows_sum', 'model')} / {rate('batch_rows_count', 'model')}"
    padding, rows = rate("padding_rows_total", "model"), rate("rows_total", "model")
    busy = {"{{model}}": rate("batch_compute_seconds_sum", "model")}
    board.with_row(dashboard.Row("Queue and device"))
    for panel in (
        graph("Queue", "s", quantiles("queue_seconds", S, "model"), "From submission to the first batch."),
        graph("Compute", "s", quantiles("batch_compute_seconds", S, "model"), "One batch on the device."),
        graph("Device in use", "percentunit", busy, "Fraction of time that batches run, summed over pods."),
        graph("Batch size", "none", {"{{model}}": mean}, "Mean rows per batch, without padding."),
        graph(
            "Batches by reason",
            "ops",
            {"{{reason}}": rate("batches_total", "reason")},
            "Why a batch was released: full, idle device or delay.",
        ),
        graph(
            "Padding",
            "percentunit",
            {"{{model}}": f"{padding} / ({padding} + {rows})"},
            "Padding as a fraction of all rows run.",
        ),
        waiting("requests"),
        waiting("rows"),
        graph("Rows", "rowsps", {"{{model}}": rows}, "Rows run, without padding.", span=6),
        graph(
            "Failures",
            "ops",
            {
                "batches {{model}}": rate("batch_failures_total", "model"),
                "loads {{model}}": rate("model_loads_total", "model", f'{S},result="failed"'),
            },
            "Batches that failed on the device, and versions that could not be loaded.",
            span=6,
        ),
    ):
        board.with_panel(panel)


def resources(board: dashboard.Dashboard) -> None:
    """Add what the pods use. Without a GPU, or without nvidia-ml-py, the two GPU panels stay empty."""
    by = "sum by (instance)"
    memory = {
        "used {{instance}} {{gpu}}": f"inkserve_gpu_memory_used_bytes{{{S}}}",
        "total {{instance}} {{gpu}}": f"inkserve_gpu_memory_total_bytes{{{S}}}",
    }
    busy = {"{{instance}} {{gpu}}": f"inkserve_gpu_utilization_ratio{{{S}}}"}
    cores = {"{{instance}}": f"{by} (rate(process_cpu_seconds_total{{{S}}}{RATE}))"}
    resident = {"{{instance}}": f"{by} (process_resident_memory_bytes{{{S}}})"}
    board.with_row(dashboard.Row("Resources"))
    for panel in (
        graph("CPU", "none", cores, "Cores in use.", span=6),
        graph("Memory", "bytes", resident, "Resident memory of all processes of a pod.", span=6),
        graph("GPU memory", "bytes", memory, "Of the whole device, including other processes.", span=6),
        graph("GPU utilisation", "percentunit", busy, "Fraction of time that a kernel ran.", span=6),
    ):
        board.with_panel(panel)


def variable(name: str, label: str, selector: str) -> dashboard.QueryVariable:
    """Return a variable with a label's values."""
    query = f"label_values(inkserve_build_info{{{selector}}}, {name})"
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def build() -> str:
    """Return the dashboard as JSON."""
    board = (
        dashboard.Dashboard("inkserve")
        .uid("inkserve")
        .tags(["inkserve"])
        .description("Requests, objectives, batches and resources of inkserve.")
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("namespace", "Namespace", ""))
        .with_variable(variable("job", "Release", 'namespace="$namespace"'))
    )
    for section in (overview, objectives, requests, batching, resources):
        section(board)
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())
