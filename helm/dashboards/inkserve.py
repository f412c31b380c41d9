"""Writes inkserve.json, the Grafana dashboard of the service, next to this file: `make dashboard`.

Its queries use the recording rules of ../rules/inkserve.yaml for the objectives, and the metrics of
service/observability/metrics.py for all else.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
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
HOT = f'{S},route=~"/classify|/generate"'
RATE = "[$__rate_interval]"

Queries = dict[str, str]
"""A query's legend -> its expression."""


def quantiles(metric: str, selector: str, by: str, *, name: str = "") -> Queries:
    """The median and the 99th percentile of a histogram, for each value of a label."""
    rates = f"sum by ({by}, le) (rate(inkserve_{metric}_bucket{{{selector}}}{RATE}))"
    return {
        f"{name}p{percent} {{{{{by}}}}}": f"histogram_quantile({percent / 100:g}, {rates})"
        for percent in (50, 99)
    }


def rate(metric: str, by: str, selector: str = S) -> str:
    """A counter's rate, for each value of a label."""
    return f"sum by ({by}) (rate(inkserve_{metric}{{{selector}}}{RATE}))"


def targets(queries: Queries, *, instant: bool = False) -> list[prometheus.Dataquery]:
    """The queries as a panel wants them."""
    built = []
    for index, (legend, expression) in enumerate(queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + index))
        built.append(query.instant() if instant else query.range())
    return built


def graph(title: str, unit: str, queries: Queries, text: str, *, span: int = 8) -> timeseries.Panel:
    """A panel of lines over time, a third of the width unless told otherwise."""
    panel = timeseries.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    # The library's default hides the legend, and with it what each line is.
    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    panel.legend(legend.placement(LegendPlacement.BOTTOM))
    every_line = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return panel.span(span).height(8).fill_opacity(8).min(0).tooltip(every_line).targets(targets(queries))


def number(title: str, unit: str, expression: str, text: str) -> stat.Panel:
    """A panel of one figure, a sixth of the width."""
    panel = stat.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel.graph_mode(BigValueGraphMode.NONE)
    return panel.span(4).height(4).targets(targets({"": expression}, instant=True))


def burn(title: str, ratio: str, budget: str, text: str) -> timeseries.Panel:
    """How many times faster than allowed a budget is spent; the lines are the alerts' thresholds."""
    windows = ("1h", "6h", "1d", "3d")
    queries = {window: f"job:{ratio}:ratio_rate{window}{{{S}}} / {budget}" for window in windows}
    lines = [(None, "green"), (1, "yellow"), (6, "orange"), (14.4, "red")]
    steps = [Threshold(value, color) for value, color in lines]
    return (
        graph(title, "none", queries, text, span=12)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.LINE))
    )


def waiting(what: str) -> timeseries.Panel:
    """The queues of the pod that has most, since each pod's queues have bounds of their own."""
    fullest = {"{{model}}": f"max by (model) (inkserve_{what}_waiting{{{S}}})"}
    text = f"In the pod where most wait. A pod refuses what is beyond max_queue_{what}, with 503."
    return graph(f"{what.capitalize()} waiting", "none", fullest, text, span=6)


def overview(board: dashboard.Dashboard) -> None:
    """Whether it is well, at a glance."""
    good = f"sum(rate(inkserve_good_requests_total{{{HOT}}}{RATE}))"
    every = f"sum(rate(inkserve_requests_total{{{HOT}}}{RATE}))"
    in_queues = f"sum(inkserve_rows_waiting{{{S}}})"
    board.with_row(dashboard.Row("Overview"))
    for panel in (
        number("Ready pods", "none", f"sum(inkserve_ready{{{S}}})", "Pods that welcome new requests."),
        number("Requests", "reqps", every, "To /classify and /generate."),
        number("Goodput", "reqps", good, "Answered with 2xx within the latency objective."),
        number("Good share", "percentunit", f"{good} / {every}", "Goodput of all requests."),
        number("Rows", "rowsps", f"sum(rate(inkserve_rows_total{{{S}}}{RATE}))", "Rows run."),
        number("Rows waiting", "none", in_queues, "In the queues of all models and pods."),
    ):
        board.with_panel(panel)


def objectives(board: dashboard.Dashboard) -> None:
    """What the alerts watch."""
    spent = "1 spends the month's budget in a month, 14.4 in two days."
    board.with_row(dashboard.Row("Objectives"))
    board.with_panel(burn("Error budget burn", "inkserve_request_errors", "0.001", f"5xx answers. {spent}"))
    board.with_panel(
        burn("Latency budget burn", "inkserve_slow_requests", "0.01", f"Slower than 0.5 s. {spent}")
    )


def requests(board: dashboard.Dashboard) -> None:
    """What clients see."""
    statuses = {"{{status}}": rate("requests_total", "status", HOT)}
    rejected = {"{{reason}}": rate("rejected_requests_total", "reason")}
    latency = quantiles("request_seconds", HOT, "route")
    board.with_row(dashboard.Row("Requests"))
    for panel in (
        graph("Requests by status", "reqps", statuses, "499: the client left before its answer."),
        graph("Latency", "s", latency, "From a request's arrival to its answer."),
        graph("Rejected by reason", "reqps", rejected, "Shed, expired, too early, too late, abandoned."),
    ):
        board.with_panel(panel)


def batching(board: dashboard.Dashboard) -> None:
    """Where the time goes and what the device is given."""
    mean = f"{rate('batch_rows_sum', 'model')} / {rate('batch_rows_count', 'model')}"
    padding, rows = rate("padding_rows_total", "model"), rate("rows_total", "model")
    busy = {"{{model}}": rate("batch_compute_seconds_sum", "model")}
    board.with_row(dashboard.Row("Queue and device"))
    for panel in (
        graph("Queue", "s", quantiles("queue_seconds", S, "model"), "From submission to the first batch."),
        graph("Compute", "s", quantiles("batch_compute_seconds", S, "model"), "One batch on the device."),
        graph("Device in use", "percentunit", busy, "Share of the time that batches run, summed over pods."),
        graph("Batch size", "none", {"{{model}}": mean}, "Mean rows in a batch, padding not counted."),
        graph("Batches by reason", "ops", {"{{reason}}": rate("batches_total", "reason")}, "Why they ran."),
        graph(
            "Padding", "percentunit", {"{{model}}": f"{padding} / ({padding} + {rows})"}, "Of all rows run."
        ),
        waiting("requests"),
        waiting("rows"),
        graph("Rows", "rowsps", {"{{model}}": rows}, "Rows run, padding not counted.", span=6),
        graph(
            "Failures",
            "ops",
            {
                "batches {{model}}": rate("batch_failures_total", "model"),
                "loads {{model}}": rate("model_loads_total", "model", f'{S},result="failed"'),
            },
            "Batches that failed on the device, versions that could not be loaded.",
            span=6,
        ),
    ):
        board.with_panel(panel)


def resources(board: dashboard.Dashboard) -> None:
    """What the pods use. Without a GPU, or without nvidia-ml-py, its two panels stay empty."""
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
        graph("Processor", "none", cores, "Cores in use.", span=6),
        graph("Memory", "bytes", resident, "Resident, all processes of a pod.", span=6),
        graph("GPU memory", "bytes", memory, "Of the whole device, other processes' too.", span=6),
        graph("GPU utilisation", "percentunit", busy, "Share of the time that a kernel ran.", span=6),
    ):
        board.with_panel(panel)


def variable(name: str, label: str, selector: str) -> dashboard.QueryVariable:
    """A choice of a label's values."""
    query = f"label_values(inkserve_build_info{{{selector}}}, {name})"
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def build() -> str:
    """The dashboard as JSON."""
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
