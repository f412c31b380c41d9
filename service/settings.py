"""Every setting of the service: flags and environment variables in, one frozen, validated object out."""

import os
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from service.addresses import parse_host
from service.errors import SettingsError
from service.service_links import is_service_link

ENV_PREFIX = "INKSERVE_"

RENAMED = {"max_queue_delay_seconds": "max_batch_delay_seconds"}
"""Old names of settings, accepted until version 0.3.0, and their new names."""

Provider = Literal["cpu", "cuda", "tensorrt"]
Determinism = Literal["generation", "all", "off"]
Port = Annotated[int, Field(ge=0, le=65535)]


RESERVED = (
    *("classify", "decode", "docs", "encode", "explain", "generate", "interpolate", "metrics", "models"),
    *("openapi.json", "playground", "reconstruct", "search", "v2"),
)
"""First segments of the service's own paths: none of them may begin `root_path`."""

_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


def parse_list(text: str | None) -> list[str]:
    """Return the parts of a setting that are separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _parse_root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ValueError("expected a path such as /digits")
    if path.split("/")[1:2] and path.split("/")[1] in RESERVED:
        raise ValueError(f"expected a path that does not begin like the service's own: {', '.join(RESERVED)}")
    return path


def _parse_networks(text: str | None) -> str | None:
    for part in parse_list(text):
        if part != "*":
            ip_network(part)  # its ValueError says what is wrong
    return text


def _parse_origins(text: str | None) -> str | None:
    origins = parse_list(text)
    if "*" in origins and len(origins) > 1:
        raise ValueError("* is every origin, expected no other beside it")
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin, expected scheme://host or scheme://host:port in lower case, as a "
                "browser sends it, or *"
            )
    return text


class _Environment(EnvSettingsSource):
    """The environment without Kubernetes' service links: INKSERVE_PORT may be one."""

    def __call__(self) -> dict[str, Any]:
        links = {
            name
            for name in self.settings_cls.model_fields
            if is_service_link(variable(name), os.environ.get(variable(name), ""))
        }
        return {name: value for name, value in super().__call__().items() if name not in links}


class Settings(BaseSettings):
    """Each setting is a flag and an environment variable: --max-batch-size is INKSERVE_MAX_BATCH_SIZE."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: Annotated[str, AfterValidator(parse_host)] = Field(
        "127.0.0.1",
        description="address or name to listen on; `0.0.0.0` is every IPv4 address, `::` every address, "
        "IPv4 and IPv6",
    )
    port: Port = Field(8000, description="port to listen on; 0 lets the system choose one")
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="number of HTTP worker processes, in addition to one engine process; 0 runs everything "
        "in one process",
    )
    socket: Path | None = Field(
        None,
        description="Unix socket between the HTTP workers and the engine, required by the commands "
        "`http` and `engine`; if unset, `serve` creates one in a private folder",
    )
    models_dir: Path = Field(
        Path("models"), description="folder of models, as `<name>/<version>/{model.onnx,manifest.json}`"
    )
    trusted_keys: Path | None = Field(
        None,
        description="file of one public key (PEM, elliptic curve), or folder of such files; each model "
        "version must be signed by one of them, in all its files; if unset, no signature is required; needs "
        "the extra `signing`",
    )
    serve_versions: Literal["latest", "all"] = Field(
        "latest", description="versions of each model to serve: the latest (highest), or all"
    )
    default_classifier: str | None = Field(
        None,
        description="model for `/classify` requests that name none; if unset, the classifier whose "
        "manifest says `default`, or the first by name",
    )
    default_generator: str | None = Field(
        None,
        description="model for `/generate` requests that name none; if unset, the generator whose "
        "manifest says `default`, or the first by name",
    )
    default_encoder: str | None = Field(
        None,
        description="model for `/encode` and `/reconstruct` requests that name none; if unset, the encoder "
        "whose manifest says `default`, or the first by name",
    )
    prefer: str | None = Field(
        None,
        pattern="^(int8|fp16)(,(int8|fp16))*$",
        description="variants on fewer bits (`int8`, `fp16`), separated by commas, the best first: the first "
        "one that is served answers the requests to `/classify`, `/generate` and `/v2/models/{name}/infer` "
        "that ask for its model and pin no version; if unset, the model itself answers them",
    )
    provider: Provider = Field(
        "cpu", description="onnxruntime execution provider; startup fails if it is unavailable"
    )
    device_id: int = Field(0, ge=0, description="index of the GPU, for the providers `cuda` and `tensorrt`")
    cuda_graphs: bool = Field(
        True,
        description="with provider `cuda`, replay a captured CUDA graph for each batch size; a model with "
        "nodes that run on the CPU runs without graphs",
    )
    tf32: bool = Field(
        False,
        description="with provider `cuda`, multiply float32 numbers as TF32, which keeps 10 of their 23 "
        "mantissa bits: faster, and the results are no longer the CPU's up to rounding",
    )
    pinned_memory: bool = Field(
        True,
        description="on a GPU, pin the host memory that batches are copied from; startup fails if it cannot "
        "be pinned",
    )
    overlap_copies: bool = Field(
        True,
        description="with provider `cuda`, copy the next full batch to the GPU while the current one is "
        "computed; ignored without `pinned_memory`",
    )
    max_device_memory_bytes: int | None = Field(
        None,
        ge=1024 * 1024,
        description="with provider `cuda`, maximum bytes of device memory for the weights and tensors of one "
        "model version (onnxruntime's `gpu_mem_limit`); a version that needs more is not served; if unset, "
        "all of the device's",
    )
    intra_op_threads: int = Field(
        0,
        ge=0,
        description="onnxruntime threads per batch on the CPU; 0 uses every available core, or all but one "
        "if there are more than two",
    )
    determinism: Determinism = Field(
        "generation",
        description="models that always run at one fixed batch size, or in sizes that compute the same bits, "
        "so that a row's output does not depend on the rest of its batch: generators and the models that "
        "read their prompts (`generation`), all, or none (`off`)",
    )
    fixed_batch_size: int = Field(
        16,
        ge=1,
        le=4096,
        description="batch size, in rows, of the models that `determinism` selects; on a CPU, generators "
        "also run in the other sizes that compute the same bits",
    )
    max_batch_size: int = Field(256, ge=1, le=4096, description="maximum batch size, in rows")
    max_batch_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=10,
        description="seconds that an idle device waits for a batch to fill; 0 starts at once",
    )
    max_queue_rows: int = Field(
        16384, ge=1, description="maximum rows queued per model; further requests get 429"
    )
    max_queue_requests: int = Field(
        512, ge=1, description="maximum requests queued per model; further requests get 429"
    )
    max_request_rows: int = Field(
        4096, ge=1, description="maximum rows in one request; at most `max_queue_rows`"
    )
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="maximum bytes in one request body")
    max_json_values: int = Field(
        1_000_000,
        ge=1024,
        description="maximum values in one JSON body, counted before it is parsed; lists and objects may be "
        "a sixteenth of them",
    )
    max_image_pixels: int = Field(
        16_000_000,
        ge=784,
        description="maximum pixels in a posted picture, of a JPEG after its reduction",
    )
    max_jpeg_pixels: int = Field(
        64_000_000,
        ge=784,
        description="maximum pixels in a posted JPEG as its header says; above 1.5 million it is decoded at "
        "a reduced scale",
    )
    max_jpeg_scans: int = Field(
        100, ge=1, description="maximum scans in a progressive JPEG; each one is a pass over all pixels"
    )
    max_request_pixels: int = Field(
        64_000_000, ge=784, description="maximum pixels in all pictures of one request together"
    )
    max_picture_bytes: int = Field(
        192 * 1024 * 1024,
        ge=64 * 1024,
        description="maximum memory for decoding a posted picture, as its header says; PNGs without "
        "interlacing and baseline JPEGs always fit; per pixel WebP takes 16 bytes, AVIF 10, HEIC 12, "
        "colours in TIFF 8, and a progressive JPEG 3 or 6; other PNGs, GIF and BMP may take 12 MiB",
    )
    decoders: int = Field(
        0,
        ge=0,
        le=256,
        description="maximum number of processes that decode large bodies, for each process that speaks "
        "HTTP; started when needed; 0 uses half of the available cores",
    )
    max_decode_seconds: float = Field(
        3.0, gt=0, le=600, description="maximum CPU seconds for decoding one body"
    )
    max_decode_memory_bytes: int = Field(
        384 * 1024 * 1024, ge=64 * 1024 * 1024, description="maximum memory for decoding one body, in bytes"
    )
    max_decode_queue: int = Field(
        64, ge=0, description="maximum bodies waiting to be decoded; further requests are rejected"
    )
    max_waiting_bytes: int = Field(
        8 * 1024 * 1024,
        ge=64 * 1024,
        description="maximum bytes of the bodies that wait to be decoded, in all processes together, with "
        "those that have come in part; raw rows do not count, nor do bodies of at most 16 KiB on "
        "the fast path, which wait for no decoder; one more body per process may wait, of up to "
        "`max_body_bytes`; a request beyond gets 429",
    )
    request_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="default deadline of a request in seconds, and the longest that a client may ask for",
    )
    max_connections: int = Field(
        8192,
        ge=1,
        description="maximum open connections per process, and no more than its file descriptors allow; at "
        "the limit, the connections that have been idle for longest are closed",
    )
    max_head_bytes: int = Field(
        32 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="maximum bytes in a request's head; a larger one gets 431",
    )
    max_buffered_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024 * 1024,
        description="maximum bytes of bodies and unsent responses that a process holds for all connections "
        "together; a request that needs more is rejected",
    )
    head_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description="seconds that a client has to send a request's head, and a new connection to send its "
        "first; a body must come within the request's deadline",
    )
    send_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="seconds after which a client that does not read its response is dropped",
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        le=7200,
        description="seconds that an idle connection is kept open; longer than the proxies in front keep "
        "theirs, or they send requests into closed ones",
    )
    connection_max_age_seconds: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="seconds after which a connection is closed, with its next response, so that callers "
        "spread over the replicas there are now; each connection gets a random age from half of this to all; "
        "0 keeps connections for as long as they are used",
    )
    load_reports: Literal["off", "on-request", "always"] = Field(
        "on-request",
        description="responses that carry the load in `endpoint-load-metrics` (ORCA), which balancers weigh "
        "pods by: those to requests with `endpoint-load-metrics-format`, all, or none",
    )
    agent_port: Port | None = Field(
        None,
        description="port, on the same host, that answers HAProxy's agent checks (`agent-check`) with the "
        "weight that the service should have, by its load, and 0 while it drains; plain TCP without a key; 0 "
        "lets the system choose; if unset, there is none",
    )
    grpc_port: Port | None = Field(
        None,
        description="port, on the same host, for the Open Inference Protocol over gRPC, with the API keys, "
        "certificates and limits of HTTP; 0 lets the system choose; if unset, there is none; needs the extra "
        "`grpc`",
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        description="seconds after SIGTERM during which the service is unready but still answers; then the "
        "port closes",
    )
    shutdown_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="seconds that requests in flight may take after the port closes",
    )
    root_path: Annotated[str, AfterValidator(_parse_root_path)] = Field(
        "",
        description="path prefix under which a proxy serves this service, such as `/digits`; requests are "
        "answered with it and without it",
    )
    trusted_proxies: Annotated[str | None, AfterValidator(_parse_networks)] = Field(
        None,
        description="addresses and networks (CIDR) of proxies, separated by commas, whose X-Forwarded-For "
        "and X-Forwarded-Proto are believed; `*` believes everybody; if unset, nobody",
    )
    cors_origins: Annotated[str | None, AfterValidator(_parse_origins)] = Field(
        None,
        description="origins whose pages may call this service from a browser (CORS), separated by commas, "
        "such as `https://app.example.com`; `*` is every origin; if unset, none may",
    )
    playground: bool = Field(
        True,
        description="answer browsers at `/` with a page to draw digits on and to try the models; if off, `/` "
        "leads to `/docs`",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file of API keys, one per line as `KEY` or `NAME:SCOPES:KEY`; each request except "
        "probes, metrics, documentation and the playground's files must send one as "
        "`Authorization: Bearer KEY`; if unset, no key is required",
    )
    ssl_certfile: Path | None = Field(
        None,
        description="PEM file of the server's certificate and its chain; with it, HTTP is served over TLS",
    )
    ssl_keyfile: Path | None = Field(
        None, description="PEM file of the certificate's private key; if unset, it is in `ssl_certfile`"
    )
    ssl_keyfile_password_file: Path | None = Field(
        None, description="file whose first line is the password of the private key"
    )
    ssl_ca_certs: Path | None = Field(
        None, description="PEM file of the authorities whose client certificates are accepted"
    )
    ssl_client_auth: Literal["off", "optional", "required", "required-except-probes"] = Field(
        "off",
        description="whether clients must send a certificate (mutual TLS): `required` (probes too), "
        "`required-except-probes` (only `/v2/health/` needs none), `optional` (one that is sent must be "
        "valid), or `off`",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level to log"
    )
    log_format: Literal["json", "text"] = Field(
        "text", description="format of the log: one JSON object per line, or plain text"
    )
    tracing: Literal["off", "otlp", "console"] = Field(
        "off",
        description="destination of spans: a collector over OTLP/HTTP, or stderr (`console`); the "
        "OpenTelemetry SDK's variables `OTEL_*` set the endpoint and the sampler; needs the extra `tracing`",
    )
    access_log: bool = Field(False, description="log one line per request; costs throughput")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of variants in `prefer`: keys of VARIANTS in `service.models.manifest`."""
        return tuple(parse_list(self.prefer))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See pydantic-settings: read the environment without service links."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        for name in ("ssl_keyfile", "ssl_keyfile_password_file", "ssl_ca_certs"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                raise ValueError(f"{name} is set, but ssl_certfile is not: expected both")
        if self.ssl_client_auth != "off" and self.ssl_ca_certs is None:
            raise ValueError(
                f"ssl_client_auth is {self.ssl_client_auth}, but ssl_ca_certs is not set: expected both"
            )
        if self.ssl_client_auth == "off" and self.ssl_ca_certs is not None:
            raise ValueError("ssl_ca_certs is set, but ssl_client_auth is off: expected another value")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.agent_port and self.agent_port == self.port:
            raise ValueError(f"agent_port is {self.agent_port}, expected another one than port")
        if self.grpc_port and self.grpc_port in (self.port, self.agent_port):
            raise ValueError(f"grpc_port is {self.grpc_port}, expected another one than port and agent_port")
        return self

    @model_validator(mode="after")
    def _grpc_reads_the_key(self) -> Self:
        if self.grpc_port is not None and self.ssl_keyfile_password_file is not None:
            raise ValueError(
                "ssl_keyfile_password_file is set, and so is grpc_port: expected a private key without a "
                "password, because gRPC reads no other"
            )
        return self

    @model_validator(mode="after")
    def _device_has_memory(self) -> Self:
        if self.max_device_memory_bytes is not None and self.provider != "cuda":
            raise ValueError(
                f"max_device_memory_bytes is {self.max_device_memory_bytes}, but provider is "
                f"{self.provider}: expected provider cuda, whose memory it bounds"
            )
        return self

    @model_validator(mode="after")
    def _tf32_is_cudas(self) -> Self:
        if self.tf32 and self.provider != "cuda":
            reason = ", because TensorRT uses TF32 without it" if self.provider == "tensorrt" else ""
            raise ValueError(f"tf32 is true, but provider is {self.provider}: expected provider cuda{reason}")
        return self

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Self:
        if self.max_request_rows > self.max_queue_rows:
            raise ValueError(
                f"max_request_rows is {self.max_request_rows}, expected at most max_queue_rows "
                f"({self.max_queue_rows}): such a request could never be queued"
            )
        return self


class _ShortUsage(RawDescriptionHelpFormatter):
    """Leaves the flags out of the usage line: they are listed below it."""

    def add_usage(self, usage: str | None, *rest: Any, **more: Any) -> None:
        del usage
        super().add_usage("%(prog)s [serve | http | engine] [flags]", *rest, **more)


def load_settings(arguments: Sequence[str]) -> Settings:
    """Read the settings from flags, then the environment, then the defaults.

    arguments: the command line after the command. `--help` prints and exits.
    Raises SettingsError with the setting's name, the value seen and the value expected.
    """
    _reject_unknown_variables()
    try:
        source = CliSettingsSource[Settings](
            Settings,
            formatter_class=_ShortUsage,
            cli_prog_name="python -m service",
            cli_parse_args=_with_new_flags(arguments),
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
        )
        return Settings(_cli_settings_source=source, **_from_old_variables())
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(problem) for problem in error.errors())) from error
    except SourceError as error:
        raise SettingsError(str(error)) from error


def deprecations(arguments: Sequence[str]) -> list[str]:
    """Return a warning for each old name of a setting among the arguments and environment variables."""
    used = {argument.partition("=")[0] for argument in arguments} | os.environ.keys()
    return [
        f"{name_of(old)} is deprecated and will be removed in 0.3.0: use {name_of(new)}"
        for old, new in RENAMED.items()
        for name_of in (flag, variable)
        if name_of(old) in used
    ]


def flag(name: str) -> str:
    """Return a setting's command line flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Return a setting's environment variable."""
    return ENV_PREFIX + name.upper()


def _with_new_flags(arguments: Sequence[str]) -> list[str]:
    new_flags = {flag(old): flag(new) for old, new in RENAMED.items()}
    parts = [argument.partition("=") for argument in arguments]
    return [new_flags.get(name, name) + equals + value for name, equals, value in parts]


def _from_old_variables() -> dict[str, Any]:
    """Return the settings that only an old environment variable sets."""
    return {
        new: os.environ[variable(old)]
        for old, new in RENAMED.items()
        if variable(old) in os.environ and variable(new) not in os.environ
    }


def _reject_unknown_variables() -> None:
    known = {variable(name) for name in (*Settings.model_fields, *RENAMED)}
    for name, value in os.environ.items():
        if name.startswith(ENV_PREFIX) and name not in known and not is_service_link(name, value):
            raise SettingsError(f"environment variable {name} is not a setting; see --help")


def _problem(problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(str(part) for part in problem["loc"])
    seen = f" (seen: {problem['input']!r})" if name else ""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}{seen}" if name else message
