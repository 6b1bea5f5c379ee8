"""Load a registered model as a server would, and let it write, in a process of its own.

``python -m tasks.smoke STORE MODEL_URI`` prints what it wrote as JSON. A process of its own, for a
broken model may take its process down, and a model that loads beside us may not load alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pruneflow.errors import InputError

PROMPTS = ["The capital of France is", "One, two, three,"]
TIMEOUT = 1800  # seconds; loading a large model from a slow disk takes minutes


class SmokeError(InputError):
    """A registered model that cannot be loaded, or that writes nothing."""


def smoke_test(store: str, uri: str) -> list[str]:
    """Load a model through MLflow and continue two prompts; returns the continuations.

    Args:
        store: MLflow's store, absolute.
        uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    Raises:
        SmokeError: it cannot be loaded, its figures are not finite (the served model checks that
            when it is loaded), or it writes nothing.
    """
    command = [sys.executable, "-m", "tasks.smoke", store, uri]
    # MLflow leaves what it fetches from a server in the temporary folder.
    with tempfile.TemporaryDirectory(prefix="pruneflow-smoke-") as scratch:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                cwd=Path.cwd(),
                env={**os.environ, "TMPDIR": scratch},
            )
        except subprocess.TimeoutExpired:
            raise SmokeError(f"{uri} did not answer within {TIMEOUT} s") from None
    if done.returncode != 0:
        raise SmokeError(f"{uri} cannot be used: {next(_reasons(done.stderr), 'no reason given')}")
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    if not all(text.strip() for text in texts):
        raise SmokeError(f"{uri} was loaded, but it writes nothing")
    return texts


def _reasons(errors: str) -> Iterator[str]:
    """The lines of a traceback that say something, the last first."""
    lines = [line.strip() for line in errors.splitlines() if line and not line.startswith(" ")]
    yield from (line for line in reversed(lines) if ": " in line)
    yield from reversed(lines)


def _main(store: str, uri: str) -> None:
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    model = mlflow.pyfunc.load_model(uri)
    texts = model.predict(PROMPTS, params={"max_new_tokens": 8})
    print(json.dumps([str(text) for text in texts]))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
