"""A registry of made-up models, on a real store."""

import json
from pathlib import Path
from typing import Any

import mlflow

from pruneflow.artifacts import sha256_json
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry import promotion, versions
from tasks.tracking.store import connect, experiment

SETTINGS = RegistrySettings()
# As an earlier release stored it: without the version of its schema.
DECISION = {
    "enforced": True,
    "run_mode": "enabled",
    "reasons": [],
    "gates": [],
    "digests": {},
    "production": None,
}


class Registry:
    """Registers made-up models and lists the aliases."""

    def __init__(self, settings: RegistrySettings = SETTINGS) -> None:
        self.settings = settings
        self.client = connect(settings)
        self.experiment = experiment(self.client, settings)

    def register(
        self, content: str, accepted: bool = True, dirty: str = "false", **judged: Any
    ) -> str:
        checkpoint = Path("model")
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.json").write_text(content)
        decision = {**DECISION, "accepted": accepted, "model": content, **judged}
        with mlflow.start_run(experiment_id=self.experiment) as run:
            mlflow.log_text(json.dumps(decision), versions.DECISION_ARTIFACT)
        lineage = versions.Lineage(
            model_digest=content,
            dense_digest="dense",
            data_digest="data",
            recipe_digest="recipe",
            gates_digest="gates",
            decision_digest=sha256_json(decision),
            git_commit="git",
            git_dirty=dirty,
            dvc_lock="lock",
        )
        run_id, requirements = run.info.run_id, ["transformers"]
        return versions.register(self.settings, checkpoint, run_id, lineage, requirements).version

    def put_into_production(self, *contents: str) -> None:
        """Register models and promote each."""
        for content in contents:
            self.register(content)
            promotion.promote(self.settings)

    def aliases(self) -> dict[str, str]:
        found = versions.status(self.settings)
        return {alias: each["version"] for alias, each in found.items() if each is not None}

    def stored(self, version: str) -> Path:
        uri = f"models:/{self.settings.name}/{version}"
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
