"""Every setting of the pipeline: its type, unit, range and default. Unknown keys are errors.

`configs/pipeline.yaml` is the one source of parameters: `dvc.yaml` reads it, and so does every
stage. `pruneflow configure PROFILE` writes it whole from a profile and the defaults below.
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
    """Which dense model to prune."""

    name: Name = Field("model", description="Name of the model in reports and in the registry.")
    source: str = Field(
        description="A model directory, a hub id, a .gguf file, or package:NAME/FILE for a file "
        "that an installed Python package carries."
    )
    revision: str | None = Field(None, description="Commit of a hub id; needed for hub ids.")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="sha256 of a .gguf file, checked on reading."
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Data type in which weights are stored."
    )


Placement = Literal["auto", "whole", "spread", "streamed"]


class ComputeSettings(Settings):
    """How models are run."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` takes a GPU when torch sees one."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Type of forward and backward passes; sums are float32 or more. `auto` takes "
        "bfloat16 for weights stored so, where the processor or GPU computes in it.",
    )
    batch_tokens: Count = Field(2048, description="Tokens in one forward pass (a memory bound).")
    backward_batch_tokens: Count = Field(
        1024,
        description="Tokens in one forward and backward pass, which keeps one block's activations.",
    )
    placement: Placement = Field(
        "auto",
        description="Where a model's weights are: `whole` on one GPU, `spread` over the GPUs there "
        "are (one GPU has it whole), or `streamed`: blocks in host memory, brought to the GPU one "
        "at a time. `auto` takes the first of these that leaves room to work. Without a GPU all "
        "are the same.",
    )
    processes: Count = Field(
        1,
        description="Processes that share a round's calibration set and the GPUs; they are started "
        "by torchrun. `1` starts none.",
    )


class HealthSettings(Settings):
    """When a round counts as broken, so that the descent ends at the one before."""

    max_perplexity_ratio: float = Field(
        10.0, gt=1, description="Worst domain's validation perplexity over the dense model's."
    )
    max_kl: float | None = Field(
        2.0, gt=0, description="Nats a token, dense to pruned, mean over domains; null: no limit."
    )
    min_top1_agreement: Share | None = Field(
        0.35, description="Share of tokens where both models' likeliest next token is the same."
    )
    max_repetition_rise: Share | None = Field(
        0.4, description="Rise of the share of repeated 4-grams in greedy text."
    )
    max_entropy_drift: float | None = Field(
        1.0, gt=0, description="Nats that the mean entropy of the next token moved."
    )
    max_norm_drift: float | None = Field(
        0.25, gt=0, description="Most that a layer's activation norm moved (absolute log ratio)."
    )


class RoundSettings(Target):
    """One round of the descent: where it starts, and how small the model is when it is done."""

    parent: Name = Field(description="The round this one starts from; `dense` for the first.")


class EvaluationSettings(Settings):
    """The measure of dense and pruned model."""

    tasks: dict[Name, Annotated[int, Field(ge=10)] | None] = Field(
        default={"piqa": 200, "siqa": 200},
        min_length=1,
        description="Questions asked of each task (null: all). A task is a file of "
        "configs/lm_eval/, or else a task of lm-eval's own, read from the hub.",
    )
    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(
        2000, description="Resamples behind a 95 % interval."
    )
    seed: int = Field(0, ge=0, description="Which questions, and the bootstrap's draws.")


class LatencySettings(Settings):
    """The measure of speed and memory."""

    prompt_tokens: Count = Field(256, description="Tokens of a prefill.")
    new_tokens: Count = Field(24, description="Tokens decoded after it.")
    repeats: Annotated[int, Field(ge=6)] = Field(
        7, description="Interleaved repeats; fewer than 6 give no 95 % interval of a median."
    )
    lm_eval_questions: Count = Field(
        20, description="Questions of the first task that the lm_eval command asks the directory."
    )
    width_multiple: Count = Field(
        64, description="Widths that are no multiple of it are named as slow on GPUs."
    )


class RegistrySettings(Settings):
    """Where accepted models go."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(
        "pruneflow",
        pattern=r"^[^/:'.\s][^/:']*$",
        description="Registered model in MLflow; left out, `configure` names it after the model.",
    )
    experiment: str = Field("pruneflow", min_length=1, description="MLflow experiment.")
    tracking_uri: str = Field(
        "sqlite:///mlflow/mlflow.db", description="MLflow's store; a server's URL for teams."
    )
    artifact_location: str = Field(
        "mlflow/artifacts",
        description="Where a new experiment keeps files (a folder or a URL); with a server, a "
        "folder of this workspace stands for wherever the server keeps them.",
    )
    promotion: Literal["auto", "manual"] = Field(
        "auto",
        description="`auto`: an accepted candidate goes to production by itself; `manual`: by "
        "`pruneflow promote --approved-by NAME` alone.",
    )
    push: bool = Field(
        True, description="`dvc push` to DVC's default remote after each accepted run."
    )

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        """Settings are kept in git and with every MLflow run."""
        if urlparse(self.tracking_uri).password is not None:
            raise ValueError(
                "registry.tracking_uri holds a password: leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or PGPASSWORD)"
            )
        return self


class NotifySettings(Settings):
    """Who hears how a run ended."""

    webhook: str | None = Field(
        None,
        description="URL that is sent a POST of JSON. Such a URL is a secret: null takes it from "
        "the environment variable PRUNEFLOW_WEBHOOK, and without that nothing is sent.",
    )
    events: list[Literal["refused", "failed", "cancelled"]] = Field(
        default=["refused", "failed"],
        description="`refused` by the gates; `failed`, by bad input or a crash too; `cancelled`.",
    )
    runs: Literal["scheduled", "all"] = Field(
        "scheduled", description="`scheduled`: runs of a deployment alone, which nobody watches."
    )

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        # Not by a pattern: its error would show the value.
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("notify.webhook must start with http:// or https://")
        return value


class PipelineSettings(Settings):
    """The whole of configs/pipeline.yaml."""

    model: ModelSettings
    compute: ComputeSettings = ComputeSettings()
    documents: DocumentSettings
    calibration: CalibrationSettings = CalibrationSettings()
    pruning: PruningSettings = PruningSettings()
    recovery: RecoverySettings = RecoverySettings()
    health: HealthSettings = HealthSettings()
    rounds: dict[RoundName, RoundSettings] = Field(min_length=1)
    final_round: RoundName = Field(description="The last of rounds, whose model is delivered.")
    evaluation: EvaluationSettings = EvaluationSettings()
    latency: LatencySettings = LatencySettings()
    registry: RegistrySettings = RegistrySettings()
    notify: NotifySettings = NotifySettings()

    def digest(self) -> str:
        """Return a sha256 of what a result depends on: not where it goes, nor who hears of it."""
        return sha256_json(self.model_dump(mode="json", exclude={"registry", "notify"}))

    @model_validator(mode="before")
    @classmethod
    def _one_registered_model_a_base(cls, values: Any) -> Any:
        """Each base model has a registered model of its own, unless the settings name another."""
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            return values
        registry, name = values.get("registry", {}), values["model"].get("name")
        if not isinstance(registry, dict) or "name" in registry or not isinstance(name, str):
            return values
        return {**values, "registry": {**registry, "name": f"{name.lower()}-pruned"}}

    @model_validator(mode="after")
    def _precise(self) -> Self:
        if self.compute.dtype == "bfloat16" and self.model.dtype != "bfloat16":
            raise ValueError(
                f"model.dtype is {self.model.dtype}, but compute.dtype bfloat16 would round its "
                "weights: set compute.dtype to float32, or model.dtype to bfloat16"
            )
        return self

    @model_validator(mode="after")
    def _chain(self) -> Self:
        parent, above = DENSE, None
        for name, settings in self.rounds.items():
            if name == DENSE:
                raise ValueError(f"rounds.{name}: this name is the unpruned model's")
            if settings.parent != parent:
                raise ValueError(f"rounds.{name}.parent must be {parent}, the round before it")
            if above is not None and not settings.is_below(above):
                raise ValueError(
                    f"rounds.{name} is to reach {settings}, and the round before it {above}: each "
                    "removes more than the one before it, all by ratio, parameters or bytes"
                )
            parent, above = name, settings
        if self.final_round != parent:
            raise ValueError(f"final_round must be {parent}, the last of rounds")
        self.calibration.check_domains(self.documents.domains)
        return self


def load_settings(path: Path = PIPELINE_FILE) -> PipelineSettings:
    """Read and check a pipeline file.

    Raises:
        InputError: the file is missing, is not YAML, or a key is unknown, out of range or left
            out: DVC reads the same file and knows no defaults.
    """
    values = read_yaml(path)
    settings = parse_settings(values, path)
    absent = _first_absent(settings.model_dump(mode="json"), values)
    if absent:
        raise InputError(
            f"{path}: {absent} is missing: add it (docs/reference/settings.md has its "
            "default), or write the whole file with `pruneflow configure`"
        )
    return settings


def load_notify_settings(path: Path = PIPELINE_FILE) -> NotifySettings:
    """Read who hears how a run ended, from a file whose other sections may be what it failed of.

    A file that cannot be read at all leaves the defaults.
    """
    try:
        values = read_yaml(path)
        section = values.get("notify", {}) if isinstance(values, dict) else {}
        return check(NotifySettings, section, path)
    except InputError:
        return NotifySettings()


def _first_absent(wanted: dict[str, Any], given: dict[str, Any], prefix: str = "") -> str | None:
    for key, value in wanted.items():
        if key not in given:
            return f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(given[key], dict):
            deeper = _first_absent(value, given[key], f"{prefix}{key}.")
            if deeper:
                return deeper
    return None


def parse_settings(values: Any, where: Path) -> PipelineSettings:
    """Check the values of a pipeline file; `where` is named in the error."""
    return check(PipelineSettings, values, where)


def write_settings(settings: PipelineSettings, path: Path = PIPELINE_FILE) -> None:
    """Write a complete pipeline file: every setting, defaults included, for DVC to depend on."""
    header = (
        "# Written by `pruneflow configure`; edit freely. Every key: docs/reference/settings.md\n"
    )
    body = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with staged_file(path) as temporary:
        temporary.write_text(header + body, encoding="utf-8")
