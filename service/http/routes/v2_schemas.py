"""Bodies of the Open Inference Protocol, as the OpenAPI description shows them.

What /infer reads and writes is checked and made by `service.content.inference_bodies`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.content.inference_requests import LOW, MAX_ID_CHARS
from service.models.manifest import Datatype

Parameters = Annotated[
    dict[str, Any] | None, Field(description="Those that the server does not know are ignored.")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Sent(BaseModel):
    """Clients may add members of their own, as KServe's does; they are ignored."""

    model_config = ConfigDict(extra="allow")


class ServerMetadata(_Body):
    """What the server is."""

    name: str
    version: str
    extensions: list[str] = Field(description="Extensions of the protocol that the server has.")


class TensorMetadata(_Body):
    """An input or an output."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1 is the batch axis.")


class ModelMetadata(_Body):
    """A model's tensors."""

    name: str
    versions: list[str] = Field(description="All that are served, ascending.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReadiness(_Body):
    """The model is loaded and warm."""

    name: str
    ready: bool


class ConfiguredTensor(_Body):
    """An input or an output, as Triton's model configuration has it."""

    name: str
    data_type: str = Field(description="`TYPE_` and the datatype.")
    dims: list[int] = Field(description="The shape without the batch axis.")


class DynamicBatching(_Body):
    """How rows of several requests become a batch."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int
    priority_levels: int
    default_priority_level: int


class TransactionPolicy(_Body):
    """A request has one response."""

    decoupled: bool


class ResponseCache(_Body):
    """Responses are not cached."""

    enable: bool


class ModelConfig(_Body):
    """The members of Triton's model configuration that its clients read."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(description="The most rows of a request.")
    input: list[ConfiguredTensor]
    output: list[ConfiguredTensor]
    dynamic_batching: DynamicBatching
    model_transaction_policy: TransactionPolicy
    response_cache: ResponseCache


class Duration(_Body):
    """How often something was done, and how long it took in all."""

    count: int = Field(ge=0)
    ns: int = Field(ge=0)


class InferenceStatistics(_Body):
    """What was done for requests, as Triton counts it: each request has all of its batches' time."""

    success: Duration = Field(description="Requests that ran and did not fail, in the queue and in batches.")
    fail: Duration = Field(description="Requests that failed on the device. Rejected ones are not counted.")
    queue: Duration = Field(description="Requests that began to run, from submission to their first batch.")
    compute_input: Duration = Field(description="0 ns: part of `compute_infer`.")
    compute_infer: Duration = Field(description="Requests that ran and did not fail, in batches.")
    compute_output: Duration = Field(description="0 ns: part of `compute_infer`.")
    cache_hit: Duration = Field(description="0: responses are not cached.")
    cache_miss: Duration = Field(description="0: responses are not cached.")


class ModelStatistics(_Body):
    """What a model version has computed since the service started."""

    name: str
    version: str
    last_inference: int = Field(
        ge=0, description="When its last batch ended, in milliseconds since 1970; 0 before the first."
    )
    inference_count: int = Field(ge=0, description="Rows run, without those of requests that failed.")
    execution_count: int = Field(ge=0, description="Batches run.")
    inference_stats: InferenceStatistics


class StatisticsOfModels(_Body):
    """The statistics of one or more model versions."""

    model_stats: list[ModelStatistics]


class IndexedModel(_Body):
    """A model version in the models folder, or a whole model that cannot be served."""

    name: str
    version: str = Field(description="Empty if the whole model is meant.")
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="Why it cannot be served; else empty.")


class IndexRequest(_Sent):
    """What the index shall hold."""

    ready: bool = Field(False, strict=True, description="Only what is ready.")


class InferenceInput(_Sent):
    """A tensor of a request."""

    name: str
    shape: list[int] = Field(description="Rows first.")
    datatype: Datatype
    parameters: Parameters = None
    data: list[Any] | None = Field(
        None,
        description="The elements in row-major order, flat or nested. Absent if the parameter "
        "`binary_data_size` tells how many bytes of the tensor follow the JSON.",
    )


class InferenceOutputRequest(_Sent):
    """An output that the response shall hold."""

    name: str
    parameters: Annotated[
        dict[str, Any] | None,
        Field(
            description="`binary_data`: whether its bytes shall follow the JSON. `classification`: how "
            "many of a row's largest elements shall be named, as `value:index` or `value:index:label`."
        ),
    ] = None


class InferenceRequest(_Sent):
    """Tensors for a model."""

    id: str | None = Field(None, max_length=MAX_ID_CHARS, description="Comes back in the response.")
    parameters: Annotated[
        dict[str, Any] | None,
        Field(
            description="`timeout`: microseconds until the deadline. `priority`: 1 for normal, "
            f"{LOW} for low. `binary_data_output`: whether the bytes of outputs shall follow the JSON. "
            "Others are ignored."
        ),
    ] = None
    inputs: list[InferenceInput]
    outputs: list[InferenceOutputRequest] | None = Field(None, description="All outputs if absent.")


class InferenceOutput(_Body):
    """A tensor of a response."""

    name: str
    shape: list[int]
    datatype: Datatype | Literal["BYTES"]
    parameters: dict[str, int] | None = Field(
        None, description="`binary_data_size`, if the tensor's bytes follow the JSON."
    )
    data: list[Any] | None = Field(None, description="The elements in row-major order, flat.")


class InferenceResponse(_Body):
    """A model's outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferenceOutput]
