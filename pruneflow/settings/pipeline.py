"""Every setting of the pipeline: its type, unit, range and default. Unknown keys are errors.

`configs/pipeline.yaml` is the one source of parameters: `dvc.yaml` and every stage read it.
`pruneflow configure PROFILE` writes the complete file from a profile and the defaults below.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlparse

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from pruneflow.artifacts import sha256_json, staged_file
from pruneflow.errors import InputError
from pruneflow.settings.base import Count, Name, RoundName, Settings, Share, check, read_yaml
from pruneflow.settings.calibration import CalibrationSettings, DocumentSettings
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.settings.recovery import RecoverySettings

PIPELINE_FILE = Path("configs/pipeline.yaml")
DENSE = "dense"


class ModelSettings(Settings):
    """The dense model to prune."""

    name: Name = Field("model", description="Name of the model in reports and in the registry.")
    source: str = Field(
        description="A model directory, a hub id, a .gguf file, or package:NAME/FILE for a file "
        "in an installed Python package."
    )
    revision: str | None = Field(None, description="Commit of a hub id; required for hub ids.")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="sha256 of a .gguf file, verified when read."
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Data type that weights are stored in."
    )


Placement = Literal["auto", "whole", "spread", "streamed"]


class ComputeSettings(Settings):
    """How models are run."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` uses a GPU if torch finds one."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Data type of forward and backward passes; sums are float32 or wider. `auto` "
        "uses bfloat16 for weights stored in it, if the CPU or GPU supports bfloat16.",
    )
    batch_tokens: Count = Field(2048, description="Tokens in one forward pass; limits memory.")
    backward_batch_tokens: Count = Field(
        1024,
        description="Tokens in one forward and backward pass, which stores one block's "
        "activations.",
    )
    placement: Placement = Field(
        "auto",
        description="Where a model's weights are: `whole` on one GPU, `spread` over all GPUs, or "
        "`streamed`: blocks in host memory, loaded to the GPU one at a time. `auto` uses the first "
        "of these that leaves enough free memory. Without a GPU all are the same.",
    )
    processes: Count = Field(
        1,
        description="Processes that share a round's calibration set and the GPUs, started by "
        "torchrun. `1` starts none.",
    )


class HealthSettings(Settings):
    """Health limits: a round outside them counts as broken, and pruning stops before it."""

    max_perplexity_ratio: float = Field(
        10.0, gt=1, description="Validation perplexity over the dense model's, worst domain."
    )
    max_kl: float | None = Field(
        2.0,
        gt=0,
        description="KL divergence from the dense model in nats per token, mean over domains; "
        "null: no limit.",
    )
    min_top1_agreement: Share | None = Field(
        0.35, description="Share of tokens where both models predict the same next token."
    )
    max_repetition_rise: Share | None = Field(
        0.4, description="Increase of the share of repeated 4-grams in greedy text."
    )
    max_entropy_drift: float | None = Field(
        1.0, gt=0, description="Change of the mean next-token entropy, in nats."
    )
    max_norm_drift: float | None = Field(
        0.25,
        gt=0,
        description="Largest change of a layer's activation norm (absolute log ratio).",
    )


class RoundSettings(Target):
    """One round of the pruning schedule: its parent, and the size of its model."""

    parent: Name = Field(description="The previous round; `dense` for the first.")


class EvaluationSettings(Settings):
    """Evaluation of the dense and the pruned model."""

    tasks: dict[Name, Annotated[int, Field(ge=10)] | None] = Field(
        default={"piqa": 200, "siqa": 200},
        min_length=1,
        description="Number of questions per task (null: all). A task is a file in "
        "configs/lm_eval/, or a task built into lm-eval, whose data is read from the hub.",
    )
    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(
        2000, description="Bootstrap resamples for 95 % intervals."
    )
    seed: int = Field(0, ge=0, description="Seed for sampling questions and for the bootstrap.")


class LatencySettings(Settings):
    """Measurement of speed and memory."""

    prompt_tokens: Count = Field(256, description="Prompt tokens in the prefill phase.")
    new_tokens: Count = Field(24, description="Tokens generated in the decode phase.")
    repeats: Annotated[int, Field(ge=6)] = Field(
        7, description="Minimum interleaved repeats; below 6 a median has no 95 % interval."
    )
    precision: Share = Field(
        0.1,
        description="Repeats continue until the 95 % intervals of the speed-ups reach at most this "
        "share of the median to either side, or `max_seconds` have passed.",
    )
    max_seconds: float = Field(
        90.0, ge=0, description="Seconds after which no repeat beyond `repeats` is started."
    )
    lm_eval_questions: Count = Field(
        20, description="Questions of the first task to run with the lm_eval command."
    )
    width_multiple: Count = Field(
        64, description="Widths that are not multiples of this are reported as slow on GPUs."
    )


class RegistrySettings(Settings):
    """Registry of accepted models."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(
        "pruneflow",
        pattern=r"^[A-Za-z0-9_-]([A-Za-z0-9_. -]*[A-Za-z0-9_.-])?$",
        description="Registered model in MLflow; if omitted, `configure` names it after the model.",
    )
    experiment: str = Field("pruneflow", min_length=1, description="MLflow experiment.")
    tracking_uri: str = Field(
        "sqlite:///mlflow/mlflow.db",
        description="MLflow tracking URI; the URL of a server for teams.",
    )
    artifact_location: str = Field(
        "mlflow/artifacts",
        description="Artifact location of a new experiment (a folder or a URL); with a server, a "
        "local folder means the server's own location.",
    )
    promotion: Literal["auto", "manual"] = Field(
        "auto",
        description="`auto` promotes an accepted candidate to production; `manual` requires "
        "`pruneflow promote --approved-by NAME`.",
    )
    push: bool = Field(
        True, description="Whether to `dvc push` to the default remote after each accepted run."
    )

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        """Settings are committed to git and logged with every MLflow run."""
        if urlparse(self.tracking_uri).password is not None:
            raise ValueError(
                "registry.tracking_uri contains a password: remove it, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or PGPASSWORD)"
            )
        return self


class NotifySettings(Settings):
    """Notifications about finished runs."""

    webhook: str | None = Field(
        None,
        description="URL that receives a JSON POST request. The URL is a secret: null reads it "
        "from the environment variable PRUNEFLOW_WEBHOOK; if neither is set, nothing is sent.",
    )
    events: list[Literal["refused", "failed", "cancelled"]] = Field(
        default=["refused", "failed"],
        description="Events to send: `refused` by the gates, `failed` (bad input or a crash), "
        "`cancelled`.",
    )
    runs: Literal["scheduled", "all"] = Field(
        "scheduled", description="`scheduled`: only runs of a deployment; `all`: every run."
    )

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        # Not a pattern: its error would show the value.
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("notify.webhook must start with http:// or https://")
        return value


class PipelineSettings(Settings):
    """The complete configs/pipeline.yaml."""

    model: ModelSettings
    compute: ComputeSettings = ComputeSettings()
    documents: DocumentSettings
    calibration: CalibrationSettings = CalibrationSettings()
    pruning: PruningSettings = PruningSettings()
    recovery: RecoverySettings = RecoverySettings()
    health: HealthSettings = HealthSettings()
    rounds: dict[RoundName, RoundSettings] = Field(min_length=1)
    final_round: RoundName = Field(description="Name of the last round.")
    evaluation: EvaluationSettings = EvaluationSettings()
    latency: LatencySettings = LatencySettings()
    registry: RegistrySettings = RegistrySettings()
    notify: NotifySettings = NotifySettings()

    def digest(self) -> str:
        """Return the sha256 of all settings that affect results: not registry, not notify."""
        return sha256_json(self.model_dump(mode="json", exclude={"registry", "notify"}))

    @model_validator(mode="before")
    @classmethod
    def _name_registered_model(cls, values: Any) -> Any:
        """Name the registered model after the base model, unless the settings name it."""
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            return values
        registry, name = values.get("registry", {}), values["model"].get("name")
        if not isinstance(registry, dict) or "name" in registry or not isinstance(name, str):
            return values
        return {**values, "registry": {**registry, "name": f"{name.lower()}-pruned"}}

    @model_validator(mode="after")
    def _keep_precision(self) -> Self:
        if self.compute.dtype == "bfloat16" and self.model.dtype != "bfloat16":
            raise ValueError(
                f"model.dtype is {self.model.dtype}, but compute.dtype bfloat16 would round its "
                "weights: set compute.dtype to float32, or model.dtype to bfloat16"
            )
        return self

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        parent, above = DENSE, None
        for name, settings in self.rounds.items():
            if name == DENSE:
                raise ValueError(f"rounds.{name}: this name is reserved for the unpruned model")
            if settings.parent != parent:
                raise ValueError(f"rounds.{name}.parent must be {parent}, the previous round")
            if above is not None and not settings.is_below(above):
                raise ValueError(
                    f"rounds.{name} has the target {settings}, and the previous round {above}: "
                    "each round must remove more than the previous one, and all must use the same "
                    "of ratio, parameters and bytes"
                )
            parent, above = name, settings
        if self.final_round != parent:
            raise ValueError(f"final_round must be {parent}, the last round")
        self.calibration.check_domains(self.documents.domains)
        return self


def load_settings(path: Path = PIPELINE_FILE) -> PipelineSettings:
    """Read and check a pipeline file.

    Raises:
        InputError: the file is missing, is not YAML, or a key is unknown, out of range or missing:
            DVC reads the same file and does not know the defaults.
    """
    values = read_yaml(path)
    settings = parse_settings(values, path)
    absent = _first_absent(settings.model_dump(mode="json"), values)
    if absent:
        raise InputError(
            f"{path}: {absent} is missing: add it (docs/reference/settings.md has its "
            "default), or write the complete file with `pruneflow configure`"
        )
    return settings


def load_notify_settings(path: Path = PIPELINE_FILE) -> NotifySettings:
    """Read only the notify section, from a file whose other sections may be invalid.

    A file that cannot be read gives the defaults.
    """
    try:
        values = read_yaml(path)
        section = values.get("notify", {}) if isinstance(values, dict) else {}
        return check(NotifySettings, section, path)
    except InputError:
        return NotifySettings()


def _first_absent(expected: dict[str, Any], given: dict[str, Any], prefix: str = "") -> str | None:
    for key, value in expected.items():
        if key not in given:
            return f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(given[key], dict):
            deeper = _first_absent(value, given[key], f"{prefix}{key}.")
            if deeper:
                return deeper
    return None


def parse_settings(values: Any, where: Path) -> PipelineSettings:
    """Validate the values of a pipeline file; errors name `where`."""
    return check(PipelineSettings, values, where)


def write_settings(settings: PipelineSettings, path: Path = PIPELINE_FILE) -> None:
    """Write a complete pipeline file: every setting, defaults included, for DVC to depend on."""
    header = (
        "# Written by `pruneflow configure`; edit freely. Every key: docs/reference/settings.md\n"
    )
    body = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with staged_file(path) as temporary:
        temporary.write_text(header + body, encoding="utf-8")
