"""`pruneflow serve`: the version in production over HTTP, the next one after a restart."""

from pathlib import Path

import pytest

from pruneflow.settings.pipeline import RegistrySettings
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace
from tests.servers import ask, served

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


def test_production_is_served_and_the_next_promotion_after_a_restart(workspace: Workspace) -> None:
    Path("mlflow/served_model.py").write_text(SERVED)
    store = Registry(RegistrySettings(name="toy-pruned"))
    for content in ("one", "two"):
        store.put_into_production(content)
        with served(workspace.environment) as address:
            assert ask(address, {"inputs": ["say"]}) == (200, {"predictions": [f"say {content}"]})
            status, said = ask(address, "no object")
            assert status == 400 and "Traceback" not in said, said
            assert ask(address, {"inputs": ["say"]})[0] == 200  # it is still up
