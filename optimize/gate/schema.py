"""What ``optimize.toml`` may hold, as pydantic models: checked here, and the source of the schema.

Nothing of this is imported before a file is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import NullableSchema, WithDefaultSchema

from optimize.budgets.budget import Budget, Floor
from optimize.budgets.regression import parse_loss, parse_tolerance
from optimize.errors import InputError
from optimize.gate.names import ANY
from optimize.passes.chain import Chain
from optimize.request import parse_duration, parse_input

_BYTES = "size="


def _checked(parse: Callable[[str], object], option: str = "") -> AfterValidator:
    """Let a text pass that ``parse`` reads; the text itself is kept."""

    def check(text: str) -> str:
        try:
            parse(text)
        except InputError as error:
            reason = str(error).removeprefix(option).strip()
            raise PydanticCustomError("unreadable", "{reason}", {"reason": reason}) from None
        return text

    return AfterValidator(check)


def _listed(value: Any) -> Any:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _by_target(value: Any) -> Any:
    """Budgets without a target hold on every device."""
    return value if isinstance(value, dict) else {ANY: value}


BudgetText = Annotated[str, _checked(Budget.parse), Field(examples=["p99=20ms", "size=25MB"])]
Budgets = Annotated[
    list[BudgetText],
    BeforeValidator(_listed, json_schema_input_type=BudgetText | list[BudgetText]),
    Field(min_length=1),
]
ByTarget = Annotated[
    dict[str, Budgets],
    BeforeValidator(
        _by_target,
        json_schema_input_type=BudgetText | list[BudgetText] | dict[str, Budgets],
    ),
    Field(min_length=1),
]
Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Chains = Annotated[
    list[Annotated[str, _checked(Chain.parse)]],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Inputs = Annotated[
    list[Annotated[str, _checked(parse_input, "--input")]],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Duration = Annotated[str, _checked(parse_duration, "--time-limit")]
Tolerance = Annotated[str, _checked(parse_tolerance)]
LossText = Annotated[str, _checked(parse_loss)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Options(Section):
    """What every model may say, and ``[defaults]`` for all of them: the options of the command."""

    budget: ByTarget | None = Field(
        None, description="p50|p90|p95|p99|p99.9=20ms, size=25MB, memory=500MB: one, several, or a "
        "table with the budgets of each target; those of any hold on every device."
    )  # fmt: skip
    floor: Annotated[str, _checked(Floor.parse)] | None = Field(
        None, description="METRIC=VALUE, drop=0.01 or drop=1%."
    )
    data: str | None = Field(
        None, description="Samples: .npz, a folder of .npz, or file.py:function."
    )
    calibration: str | None = Field(None, description="Samples to calibrate on.")
    metric: str | None = Field(
        None,
        description="top1, top5, f1, mae, rmse, cosine (of one output: top1:NAME), or "
        "file.py:function.",
    )
    chains: Chains | None = Field(None, description="Only these chains of passes.")
    runtime: Texts = Field(
        ["onnxruntime"], description="onnxruntime, openvino, inductor, several, or all."
    )
    objective: Literal["latency", "accuracy", "size"] = Field(
        "latency", description="What to pick by among the kept."
    )
    threads: Count | None = Field(None, description="Threads of the runtime.")
    cpus: str | None = Field(None, description="Cores for the model, such as 0,2-3.")
    batch: Count | None = Field(None, description="Samples a call.")
    confidence: float = Field(0.99, gt=0.5, lt=1, description="Of a kept verdict.")
    time_limit: Duration = Field("10m", description="Of one run: 90s, 10m or none.")
    max_samples: Count = Field(5000, description="Timed calls of one variant.")
    strict_floor: bool = Field(False, description="The interval's worse end must meet the floor.")
    pre: str | None = Field(None, description="file.py:function before each call, timed too.")
    post: str | None = Field(None, description="file.py:function after each call, timed too.")
    inputs: Inputs = Field([], description="Inputs' shapes, such as image=Nx3x224x224:float32.")
    arch: str | None = Field(None, description="file.py:factory for weights alone.")
    trust_pickle: bool = Field(False, description="Let a pickled model run its code.")
    seed: int = Field(0, ge=0, description="For shares and order.")
    tolerance: Tolerance = Field(
        "10%", description="How much slower than a baseline a model may be (--against)."
    )
    metric_tolerance: LossText = Field(
        "0", description="How much of the metric may be lost against a baseline: in its unit, a "
        "share such as 1%, or none to leave it out."
    )  # fmt: skip


class ModelSection(Options):
    """One declared model."""

    source: str = Field(description="The model: TorchScript, .pt2, weights, ONNX, or a folder.")
    out: str | None = Field(None, description="Its result folder.")


class TargetSection(Section):
    """A device by conditions on its fingerprint; all must hold."""

    cpu: str | None = Field(None, description="Name of the processor; * and ? stand for any text.")
    architecture: str | None = Field(None, description="Such as x86_64 or aarch64.")
    isa: list[str] | None = Field(
        None, min_length=1, description="Instruction sets that it has, such as avx512_vnni."
    )
    cores: Count | None = Field(None, description="Cores that are granted to the process.")
    min_memory: Annotated[str, _checked(lambda t: Budget.parse(_BYTES + t))] | None = Field(
        None, description="Least memory, such as 8GB."
    )
    os: str | None = Field(None, description="Operating system; * and ? stand for any text.")


class Config(Section):
    """The whole file, or ``[tool.optimize]`` of pyproject.toml."""

    model_config = ConfigDict(
        extra="forbid", strict=True, title="optimize.toml",
        json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"},
    )  # fmt: skip

    defaults: Options = Field(
        default_factory=Options.model_construct, description="For all models."
    )
    targets: dict[str, TargetSection] = Field({}, description="Devices that budgets are bound to.")
    models: dict[str, ModelSection] = Field(
        min_length=1, description="The declared models by name."
    )


class _WithoutNull(GenerateJsonSchema):
    """TOML has no null: an option that is not set is left out."""

    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        return {key: value for key, value in found.items() if (key, value) != ("default", None)}


def json_schema() -> str:
    """The JSON Schema of the file, for editors."""
    import json

    return json.dumps(Config.model_json_schema(schema_generator=_WithoutNull), indent=2) + "\n"
