"""Writes inkserve.json, the service's Grafana dashboard, next to this file: `make dashboard`.

The objectives' queries use the recording rules of ../rules/inkserve.yaml. Replicas, limits, throttling and
restarts come from kube-state-metrics and the kubelet, all others from the metrics of
service/observability/metrics.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
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
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from service.observability.load import ROUTES

FILE = Path(__file__).with_suffix(".json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

SERVICE = 'namespace="$namespace",job="$job"'
S = f'{SERVICE},pod=~"$pod"'
INFERENCE = f'{S},route=~"{"|".join(ROUTES)}"'
RATE = "[$__rate_interval]"
DEPLOYMENT = 'namespace="$namespace",deployment="$job"'
PODS = 'namespace="$namespace",pod=~"$job-[a-z0-9]+-[a-z0-9]+",pod=~"$pod"'
"""The pods of the Deployment, whose name is the job's, in the metrics of Kubernetes."""
CONTAINERS = f'{PODS},container!=""'
"""Without the sums over a pod's containers, which the kubelet reports under an empty name."""

EVERY = VariableOption(text="All", value="$__all")

Queries = dict[str, str]
"""Expressions by legend."""


def quantiles(
    metric: str, selector: str, by: str, *, name: str = "", percents: Sequence[int] = (50, 99)
) -> Queries:
    """Return a histogram's percentiles for each value of a label, by default its median and its 99th."""
    rates = f"sum by ({by}, le) (rate(inkserve_{metric}_bucket{{{selector}}}{RATE}))"
    return {
        f"{name}p{percent} {{{{{by}}}}}": f"histogram_quantile({percent / 100:g}, {rates})"
        for percent in percents
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
    queries = {window: f"job:{ratio}:ratio_rate{window}{{{SERVICE}}} / {budget}" for window in windows}
    lines = [(None, "green"), (1, "yellow"), (6, "orange"), (14.4, "red")]
    steps = [Threshold(value, color) for value, color in lines]
    return (
        graph(title, "none", queries, text, span=8)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.LINE))
    )


def latencies() -> heatmap.Panel:
    """Return a panel of how many responses took how long, over time."""
    rates = f"sum by (le) (rate(inkserve_request_seconds_bucket{{{INFERENCE}}}{RATE}))"
    query = prometheus.Dataquery().expr(rates).legend_format("{{le}}").ref_id("A").range()
    panel = heatmap.Panel().title("Latency, all responses").unit("reqps").datasource(SOURCE)
    panel.description("Responses per second by the bucket of their time. With tracing on, dots are traces.")
    panel.y_axis(heatmap.YAxisConfig().unit("s")).span(16).height(8)
    return panel.with_target(query.format(PromQueryFormat.HEATMAP).exemplar(True))


def overview(board: dashboard.Dashboard) -> None:
    """Add the service's state at a glance."""
    good = f"sum(rate(inkserve_good_requests_total{{{INFERENCE}}}{RATE}))"
    every = f"sum(rate(inkserve_requests_total{{{INFERENCE}}}{RATE}))"
    load = f"avg(inkserve_load{{{S}}})"
    in_flight = f"sum(inkserve_requests_in_flight{{{S}}})"
    board.with_row(dashboard.Row("Overview"))
    for panel in (
        number("Ready pods", "none", f"sum(inkserve_ready{{{S}}})", "Pods that accept new requests."),
        number("Requests", "reqps", every, f"To {', '.join(ROUTES)}."),
        number("Goodput", "reqps", good, "2xx responses within the latency objective."),
        number("Good fraction", "percentunit", f"{good} / {every}", "Goodput as a fraction of all requests."),
        number("Load", "none", load, "Mean of the pods, which autoscalers read. About 1 is capacity."),
        number("In flight", "none", in_flight, "Requests from their first byte to their response."),
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
    agreeing = rate("generator_agreement_total", "model", f'{S},result="agree"')
    agreement = {"{{model}}": f"{agreeing} / {rate('generator_agreement_total', 'model')}"}
    abstained = {"{{model}}": f"{rate('abstained_total', 'model')} / {rate('rows_total', 'model')}"}
    latency = quantiles("request_seconds", INFERENCE, "route")
    coding = {
        **quantiles("decode_seconds", S, "format", name="decode ", percents=(99,)),
        **quantiles("encode_seconds", S, "format", name="encode ", percents=(99,)),
    }
    board.with_row(dashboard.Row("Requests"))
    for panel in (
        graph(
            "Requests by status",
            "reqps",
            statuses,
            "499: the client disconnected before its response.",
            span=8,
        ),
        graph("Latency", "s", latency, "From a request's arrival to its response.", span=8),
        graph(
            "Rejected by reason", "reqps", rejected, "Shed, expired, not ready, stopping, abandoned.", span=8
        ),
        latencies(),
        graph(
            "Decoding and encoding",
            "s",
            coding,
            "Bodies and results, the wait for a decoder process included. Raw rows need neither.",
            span=8,
        ),
        graph(
            "Abstained",
            "percentunit",
            abstained,
            "Of the rows of classifiers that tell an ood_score. About 1 % of digits.",
            span=12,
        ),
        graph(
            "Agreement",
            "percentunit",
            agreement,
            "Of generated images with the classifier that reads them.",
            span=12,
        ),
    ):
        board.with_panel(panel)


def batching(board: dashboard.Dashboard) -> None:
    """Add where the time goes and how batches form."""
    mean = f"{rate('batch_rows_sum', 'model')} / {rate('batch_rows_count', 'model')}"
    padding, rows = rate("padding_rows_total", "model"), rate("rows_total", "model")
    ready = f"scalar(clamp_min(sum(inkserve_ready{{{S}}}), 1))"
    busy = {"{{model}}": f"{rate('batch_compute_seconds_sum', 'model')} / {ready}"}
    requests_now = {
        "in flight": f"sum(inkserve_requests_in_flight{{{S}}})",
        "queued": f"sum(inkserve_requests_queued{{{S}}})",
    }
    fullest = {"{{model}}": f"max by (model) (inkserve_requests_waiting{{{S}}})"}
    load = {"{{instance}}": f"inkserve_load{{{S}}}"}
    board.with_row(dashboard.Row("Queue and device"))
    for panel in (
        graph(
            "Load by pod", "none", load, "Work plus ten times the fraction shed: what to scale on. At most 2."
        ),
        graph(
            "Requests in flight",
            "none",
            requests_now,
            "Requests in all pods: between first byte and response.",
        ),
        graph("Device in use", "percentunit", busy, "Fraction of time that batches run, mean of ready pods."),
        graph("Queue", "s", quantiles("queue_seconds", S, "model"), "From submission to the first batch."),
        graph("Compute", "s", quantiles("batch_compute_seconds", S, "model"), "One batch on the device."),
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
        graph(
            "Requests queued",
            "none",
            fullest,
            "In the pod with most of them. Beyond max_queue_requests a pod rejects requests with 429.",
        ),
        graph("Rows", "rowsps", {"{{model}}": rows}, "Rows run, without padding.", span=12),
        graph(
            "Failures",
            "ops",
            {
                "batches {{model}}": rate("batch_failures_total", "model"),
                "loads {{model}}": rate("model_loads_total", "model", f'{S},result="failed"'),
            },
            "Batches that failed on the device, and versions that could not be loaded.",
            span=12,
        ),
    ):
        board.with_panel(panel)


def resources(board: dashboard.Dashboard) -> None:
    """Add what the pods use.

    Without a GPU, or without nvidia-ml-py, the two GPU panels stay empty; without kube-state-metrics and the
    kubelet's metrics, replicas, limits, throttling and restarts.
    """
    by = "sum by (instance)"
    scaled = 'namespace="$namespace",horizontalpodautoscaler=~"(keda-hpa-)?$job"'
    replicas = {
        "ready": f"sum(kube_deployment_status_replicas_ready{{{DEPLOYMENT}}})",
        "wanted": f"sum(kube_deployment_spec_replicas{{{DEPLOYMENT}}})",
        "autoscaler wants": f"sum(kube_horizontalpodautoscaler_status_desired_replicas{{{scaled}}})",
        "autoscaler's maximum": f"sum(kube_horizontalpodautoscaler_spec_max_replicas{{{scaled}}})",
    }
    periods = "rate(container_cpu_cfs_{}periods_total{{" + CONTAINERS + "}}" + RATE + ")"
    throttled = {
        "{{pod}}": f"sum by (pod) ({periods.format('throttled_')}) / sum by (pod) ({periods.format('')})"
    }
    restarts = {"{{pod}} {{container}}": f"increase(kube_pod_container_status_restarts_total{{{PODS}}}[1h])"}
    connections = {
        "open": f"sum(inkserve_connections{{{S}}})",
        "closed per second: {{reason}}": rate("connections_closed_total", "reason"),
    }
    limit = 'max(sum by (pod) (kube_pod_container_resource_limits{{{},resource="{}"}}))'
    memory = {
        "used {{instance}} {{gpu}}": f"inkserve_gpu_memory_used_bytes{{{S}}}",
        "total {{instance}} {{gpu}}": f"inkserve_gpu_memory_total_bytes{{{S}}}",
    }
    busy = {"{{instance}} {{gpu}}": f"inkserve_gpu_utilization_ratio{{{S}}}"}
    cores = {
        "{{instance}}": f"{by} (rate(process_cpu_seconds_total{{{S}}}{RATE}))",
        "limit of a pod": limit.format(CONTAINERS, "cpu"),
    }
    resident = {
        "{{instance}}": f"{by} (process_resident_memory_bytes{{{S}}})",
        "limit of a pod": limit.format(CONTAINERS, "memory"),
    }
    board.with_row(dashboard.Row("Resources"))
    for panel in (
        graph("Replicas", "none", replicas, "Pods of the Deployment, and its autoscaler.", span=6),
        graph("CPU", "none", cores, "Cores in use, by all processes of a pod.", span=6),
        graph("CPU throttled", "percentunit", throttled, "Fraction of periods that hit the limit.", span=6),
        graph("Restarts", "none", restarts, "Of each container, in the last hour.", span=6),
        graph("Memory", "bytes", resident, "Resident memory of all processes of a pod.", span=6),
        graph("GPU memory", "bytes", memory, "Of the whole device, including other processes.", span=6),
        graph("GPU utilisation", "percentunit", busy, "Fraction of time that a kernel ran.", span=6),
        graph("Connections", "none", connections, "Open, and closed early by the service.", span=6),
    ):
        board.with_panel(panel)


def variable(name: str, label: str, selector: str) -> dashboard.QueryVariable:
    """Return a variable with a label's values."""
    query = f"label_values(inkserve_build_info{{{selector}}}, {name})"
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def pods() -> dashboard.QueryVariable:
    """Return the variable of pods, of which any number is chosen. `.*` includes series without the label."""
    return variable("pod", "Pod", SERVICE).multi(True).include_all(True).all_value(".*").current(EVERY)


def annotations() -> list[dashboard.AnnotationQuery]:
    """Return the marks at deployments: of the Deployment, and of versions in the models folder.

    A change of the number of replicas is no deployment.
    """
    changes = "changes(kube_deployment_{}{{" + DEPLOYMENT + "}}[2m]) > 0"
    deployed = f"{changes.format('metadata_generation')} unless {changes.format('spec_replicas')}"
    loaded = f'sum by (model) (increase(inkserve_model_loads_total{{{SERVICE},result="loaded"}}[2m])) > 0'
    return [
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .expr(expression)
        .icon_color(color)
        for name, expression, color in (("Deployed", deployed, "blue"), ("Models loaded", loaded, "purple"))
    ]


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
        .with_variable(pods())
    )
    for marks in annotations():
        board.annotation(marks)
    for section in (overview, objectives, requests, batching, resources):
        section(board)
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())
