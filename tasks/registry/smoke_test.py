"""Load a registered model as a server would, and generate text with it, in a separate process.

``python -m tasks.registry.smoke_test STORE`` reads one model URI per line and prints the generated
texts as JSON. The process is separate because a broken model may crash it. Both tests of a
promotion share one process, since imports take longer than loading.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow

from pruneflow.errors import InputError

PROMPTS = ["The capital of France is", "One, two, three,"]
TIMEOUT = 1800  # seconds; a large model takes minutes to load from a slow disk


class SmokeError(InputError):
    """A registered model cannot be loaded, or generates nothing."""


@contextmanager
def smoke_tests(store: str) -> Iterator[Callable[[str], list[str]]]:
    """Yield a test that loads a model through MLflow and returns its continuations of two prompts.

    The test takes ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``. It raises SmokeError if the
    model cannot be loaded, its outputs are not finite (checked on load), or it generates nothing.

    Args:
        store: URI of MLflow's store, absolute.
    """
    # MLflow does not delete what it downloads from a server to the temporary folder.
    with tempfile.TemporaryDirectory(prefix="pruneflow-smoke-") as scratch:
        log = Path(scratch, "errors")
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "tasks.registry.smoke_test", store],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "TMPDIR": scratch},
            ) as process,
        ):
            try:
                yield lambda uri: _ask(process, uri, log)
            finally:
                process.kill()


def _ask(process: subprocess.Popen[str], uri: str, log: Path) -> list[str]:
    assert process.stdin is not None and process.stdout is not None
    late = threading.Timer(TIMEOUT, process.kill)
    late.start()
    try:
        process.stdin.write(uri + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
        with suppress(BrokenPipeError):  # closing it later would hide the reason
            process.stdin.close()
    finally:
        waiting = late.is_alive()
        late.cancel()
    if not answer:
        if not waiting:
            raise SmokeError(f"{uri} did not answer within {TIMEOUT} s")
        process.wait()
        reason = next(_reasons(log.read_text(errors="replace")), "no reason given")
        raise SmokeError(f"{uri} cannot be used: {reason}")
    texts: list[str] = json.loads(answer)
    if not all(text.strip() for text in texts):
        raise SmokeError(f"{uri} was loaded, but generates nothing")
    return texts


def _reasons(errors: str) -> Iterator[str]:
    """Yield the lines of a log that may name the reason, best first."""
    lines = [line.strip() for line in errors.splitlines() if line and not line.startswith(" ")]
    yield from (line for line in reversed(lines) if ": " in line)
    yield from reversed(lines)


def _main(store: str) -> None:
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    # What libraries print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        model = mlflow.pyfunc.load_model(line.strip())
        texts = model.predict(PROMPTS, params={"max_new_tokens": 8})
        print(json.dumps([str(text) for text in texts]), file=answers, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
