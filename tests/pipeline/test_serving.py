"""`pruneflow serve`: the version in production over HTTP, the next one after a restart."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry import promotion
from tests.pipeline.test_registry import Registry
from tests.pipeline.toy import Workspace
from tests.servers import answers, free_port, serving

pytestmark = pytest.mark.slow

# Answers with its own content, so that one sees which version answers.
SERVED = """
from pathlib import Path
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.content = (Path(context.artifacts["checkpoint"]) / "config.json").read_text()

    def predict(self, context, model_input, params=None):
        return [f"{prompt} {self.content}" for prompt in model_input.iloc[:, 0]]

mlflow.models.set_model(Model())
"""


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """The server of the current directory's production; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
    ping = f"{address}/ping"
    with serving(command, lambda: answers(ping), Path("served.log"), env=environment):
        yield address


def ask(address: str, body: Any) -> tuple[int, Any]:
    """POST a body to /invocations; returns the status and the answer."""
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_production_is_served_and_the_next_promotion_after_a_restart(workspace: Workspace) -> None:
    settings = RegistrySettings(name="toy-pruned")
    Path("mlflow/served_model.py").write_text(SERVED)
    store = Registry(settings)
    for content in ("one", "two"):
        store.register(content)
        promotion.promote(settings)
        with served(workspace.environment) as address:
            assert ask(address, {"inputs": ["say"]}) == (200, {"predictions": [f"say {content}"]})
            status, said = ask(address, "no object")
            assert status == 400 and "Traceback" not in said, said
            assert ask(address, {"inputs": ["say"]})[0] == 200  # it is still up
