"""Every setting of the service: environment and flags in, one frozen, validated object out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from service.errors import SettingsError

ENV_PREFIX = "INKSERVE_"

RENAMED = {"max_queue_delay_seconds": "max_batch_delay_seconds"}
"""Old names of settings, accepted until version 0.3.0, and their new names."""

Provider = Literal["cpu", "cuda", "tensorrt"]
Determinism = Literal["generation", "all", "off"]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Settings of `python -m service`; each is a flag and an environment variable INKSERVE_<NAME>."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on; 0 lets the system choose one.")
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="HTTP worker processes beside one engine process; 0 does both in one process.",
    )
    socket: Path | None = Field(
        None,
        description="Unix socket between HTTP and the engine: for the commands `http` and `engine`; "
        "`serve` makes one in a private folder if unset.",
    )
    models_dir: Path = Field(
        Path("models"), description="Folder of <name>/<version>/{model.onnx,manifest.json}."
    )
    serve_versions: Literal["latest", "all"] = Field(
        "latest", description="Serve the highest version of each model, or all of them."
    )
    default_classifier: str | None = Field(
        None,
        description="Model that /classify uses when none is named; the first classifier by name if unset.",
    )
    default_generator: str | None = Field(
        None,
        description="Model that /generate uses when none is named; the first generator by name if unset.",
    )
    provider: Provider = Field(
        "cpu", description="onnxruntime execution provider; the start fails without it."
    )
    device_id: int = Field(0, ge=0, description="Index of the GPU, for the providers cuda and tensorrt.")
    cuda_graphs: bool = Field(
        True,
        description="With provider cuda, replay a captured CUDA graph for each batch size; "
        "the start fails for a model that leaves nodes to the CPU.",
    )
    pinned_memory: bool = Field(
        True,
        description="On a GPU, pin the host memory that batches are copied from; the start fails where that "
        "cannot be done.",
    )
    overlap_copies: bool = Field(
        True,
        description="With provider cuda, begin a batch that is whole already while the one before it runs: "
        "it is copied while that is computed. Takes pinned memory.",
    )
    intra_op_threads: int = Field(
        0,
        ge=0,
        description="onnxruntime threads for one batch on the CPU; 0 takes the available cores, less one "
        "where there are more than two.",
    )
    determinism: Determinism = Field(
        "generation",
        description="Models whose batches all have one fixed size, so that a row's bytes never depend on its "
        "batch: generators, all models, or none.",
    )
    fixed_batch_size: int = Field(16, ge=1, le=4096, description="Rows in a batch of a deterministic model.")
    max_batch_size: int = Field(256, ge=1, le=4096, description="Most rows in one batch.")
    max_batch_delay_seconds: float = Field(
        0.0, ge=0, le=10, description="How long an idle device waits for a batch to fill; 0 starts at once."
    )
    max_queue_rows: int = Field(
        16384, ge=1, description="Most rows that may wait for one model; beyond it requests get 503."
    )
    max_queue_requests: int = Field(
        512, ge=1, description="Most requests that may wait for one model; beyond it requests get 503."
    )
    max_request_rows: int = Field(4096, ge=1, description="Most rows in one request.")
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Most bytes in one request body.")
    max_image_pixels: int = Field(
        16_000_000, ge=784, description="Most pixels in a posted PNG or JPEG, read from its header."
    )
    request_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Deadline of a request that names none, and the longest that it may name.",
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        description="After SIGTERM: how long to answer while unready, before closing the port.",
    )
    shutdown_timeout_seconds: float = Field(
        30.0, gt=0, le=600, description="Then: how long the requests in flight may take."
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one a line; each request must bring one as `Authorization: Bearer "
        "KEY`, but for probes, metrics and documentation. Open to all if unset.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["json", "text"] = Field("text", description="One JSON object a line, or plain text.")
    tracing: Literal["off", "otlp", "console"] = Field(
        "off",
        description="Send spans to a collector over OTLP/HTTP, or write them on stderr; the OpenTelemetry "
        "SDK's variables OTEL_* say where to and which. Needs the extra `tracing`.",
    )
    access_log: bool = Field(False, description="Log a line for each request; costs throughput.")

    @model_validator(mode="after")
    def _limits_fit_together(self) -> Self:
        if self.max_request_rows > self.max_queue_rows:
            raise ValueError(
                f"max_request_rows is {self.max_request_rows}, expected at most max_queue_rows "
                f"({self.max_queue_rows}): such a request could never be queued"
            )
        return self


def load_settings(arguments: Sequence[str]) -> Settings:
    """Settings from flags, then the environment, then the defaults.

    arguments: the command line after the program's name. `--help` prints and exits.
    Raises SettingsError, naming the setting, what was seen and what was expected.
    """
    _refuse_unknown_variables()
    try:
        source = CliSettingsSource[Settings](
            Settings,
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


def _refuse_unknown_variables() -> None:
    known = {variable(name) for name in (*Settings.model_fields, *RENAMED)}
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name not in known:
            raise SettingsError(f"environment variable {name} is not a setting; see --help")


def _problem(problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(str(part) for part in problem["loc"])
    seen = f" (seen: {problem['input']!r})" if name else ""
    return f"{name}: {problem['msg']}{seen}" if name else str(problem["msg"]).removeprefix("Value error, ")
