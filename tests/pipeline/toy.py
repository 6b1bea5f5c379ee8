"""A toy workspace: real Prefect, DVC and MLflow around stages that write a few bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pruneflow.settings.pipeline import parse_settings, write_settings
from tests.unit import evaluation_example

REPOSITORY = Path(__file__).parents[2]

DVC = """
vars:
  - configs/pipeline.yaml
stages:
  environment:
    cmd: python -m pruneflow stage environment
    always_changed: true
    outs:
      - data/environment.json
  report:
    cmd: python toy.py report
    deps:
      - data/model
      - summary.json
    params:
      - configs/pipeline.yaml:
          - rounds
    outs:
      - data/reports/summary.json
      - data/reports/report.html
      - data/reports/baseline.json
      - data/reports/evaluation.json
      - data/reports/latency.json
      - data/calibration/documents
      - data/calibration/held_out
      - data/questions
  select:
    cmd: python toy.py select
    deps:
      - data/checkpoints/${final_round}
    outs:
      - data/model
  round:
    foreach: ${rounds}
    do:
      cmd: python toy.py ${key}
      deps:
        - data/calibration/set
      params:
        - configs/pipeline.yaml:
            - rounds.${key}
        - data/environment.json:
            - torch
      outs:
        - data/checkpoints/${key}
  calibration:
    cmd: python toy.py calibration
    deps:
      - configs/domains.yaml
    outs:
      - data/calibration/set
"""

GATES = """
run_mode: enabled
gates:
  - metric: block_ratio
    comparison: at_least
    limit: LIMIT
    why: It must get smaller.
"""

SERVED = """
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

mlflow.models.set_model(Model())
"""

SETTINGS = {
    "model": {"name": "toy", "source": "dense"},
    "documents": {"domains": ["law"]},
    "rounds": {"r1": {"parent": "dense", "ratio": 0.1}, "r2": {"parent": "r1", "ratio": 0.2}},
    "final_round": "r2",
}


def summary() -> dict[str, Any]:
    """A result with made-up numbers, as its JSON file holds it."""
    values = evaluation_example.summary().to_json()
    values["model"].update({"delivered": "r2", "planned": "r2"})
    return values


class Workspace:
    """A toy project folder, and commands to run in it."""

    def __init__(self, folder: Path, prefect_home: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(prefect_home),
        }

    def set(self, **sections: dict) -> None:
        """Write configs/pipeline.yaml with some sections changed."""
        settings = parse_settings({**SETTINGS, **sections}, Path("toy"))
        write_settings(settings, self.folder / "configs/pipeline.yaml")

    def gate(self, limit: float) -> None:
        """Set the least block ratio that is accepted."""
        text = GATES.replace("LIMIT", str(limit))
        (self.folder / "configs/gates.yaml").write_text(text)

    def start(self, *arguments: str, **options) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs of a shell ignore Ctrl-C, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )

    def do(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` in the workspace to its end."""
        with self.start(*arguments) as process:
            out, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def pruneflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.do("-m", "flows.cli", *arguments)

    def executed(self) -> list[str]:
        """Return the stages that were executed since the last call, in order."""
        log = self.folder / "executed.txt"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names


def toy_workspace(folder: Path, prefect_home: Path) -> Workspace:
    """Make a toy project folder, a git repository without a commit."""
    for name in (".dvc", "configs", "mlflow", "dense"):
        (folder / name).mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / ".gitignore").write_text("/data\n/.pruneflow\n")
    shutil.copy(Path(__file__).with_name("toy_stage.py"), folder / "toy.py")
    (folder / "dvc.yaml").write_text(DVC)
    (folder / "mlflow/served_model.py").write_text(SERVED)
    (folder / "summary.json").write_text(json.dumps(summary()))
    (folder / "dense/config.json").write_text('{"model_type": "llama"}')
    source = {"kind": "python", "content": "topics", "licence": "PSF-2.0"}
    (folder / "configs/domains.yaml").write_text(yaml.safe_dump({"law": [source]}))
    toy = Workspace(folder, prefect_home)
    toy.set()
    toy.gate(0.15)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return toy
