"""Where the servers of a team are in this session, and a member's workspace on them."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pruneflow.settings.pipeline import RegistrySettings
from tests.pipeline.toy import REPOSITORY, Workspace, toy_workspace

README = REPOSITORY / "mlflow/README.md"
BUCKET = "pruneflow"
ADMIN = "admin"
PASSWORD = secrets.token_hex(8)  # everybody's, in this session
# moto's server takes any.
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "team",
    "AWS_SECRET_ACCESS_KEY": PASSWORD,
    "AWS_DEFAULT_REGION": "us-east-1",
}
MLFLOW_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
# The ports that mlflow/README.md names, and whose they are.
PORTS = {"postgres": 5432, "s3": 9000, "prefect": 4200, "mlflow": 5000}


@dataclass(frozen=True)
class Team:
    """The servers, by their ports on 127.0.0.1."""

    ports: Mapping[str, int]

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def here(self, text: str) -> str:
        """Put this session's ports into a text of the repository."""
        for name, documented in PORTS.items():
            text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{self.ports[name]}")
            text = text.replace(f"--port {documented}", f"--port {self.ports[name]}")
        return text

    def documented(self, language: str, part: str) -> str:
        """Return the block of mlflow/README.md that holds this part, with this session's ports."""
        blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
        (found,) = [block for block in blocks if part in block]
        return self.here(found)

    def registry(self, name: str) -> RegistrySettings:
        return RegistrySettings(name=name, experiment=name, tracking_uri=self.url("mlflow"))

    def member(self, user: str | None) -> dict[str, str]:
        """What a member of the team has in the environment; None has no name in MLflow."""
        known = {} if user is None else dict(zip(MLFLOW_USER, (user, PASSWORD), strict=True))
        return {
            **S3_KEYS,
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"pruneflow:{PASSWORD}",
            **known,
        }

    def workspace(self, folder: Path, user: str | None, model: str) -> Workspace:
        """Make a workspace of a member, whose models are registered on the shared server."""
        made = toy_workspace(folder, folder.with_name(f"{folder.name}-prefect"))
        for name in MLFLOW_USER:
            made.environment.pop(name, None)
        made.environment.update(self.member(user))
        made.set(registry=self.registry(model).model_dump())
        return made
