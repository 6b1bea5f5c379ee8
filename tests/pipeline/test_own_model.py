"""README's own words: a model and a text folder of one's own, from profile to candidate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pruneflow.models.round_record import read_round_record
from tests.markdown import ROOT, blocks
from tests.pipeline.commands import pruneflow_here, run
from tests.pipeline.tiny import SMALL

pytestmark = pytest.mark.slow


def examples() -> tuple[dict[str, Any], dict[str, Any]]:
    """README's profile and its domain."""
    profile, domain = (
        yaml.safe_load(text) for language, text in blocks(ROOT / "README.md") if language == "yaml"
    )
    return profile, domain


def test_an_own_model_and_text_folder_become_a_candidate(
    real_workspace: Path, tiny_model_directory: Path, on_server: None
) -> None:
    profile, domain = examples()
    profile["model"]["source"] = str(tiny_model_directory)
    profile["model"]["dtype"] = "float32"
    profile["documents"]["max_per_domain"] = 40
    Path("configs/profiles/mine.yaml").write_text(yaml.safe_dump({**profile, **SMALL}))
    with Path("configs/domains.yaml").open("a") as file:
        file.write(yaml.safe_dump(domain))
    folder = Path("data/text/contracts")
    folder.mkdir()
    for name in dir(np):  # ordinary English of some length
        text = getattr(getattr(np, name), "__doc__", None) or ""
        if len(text) > 600:
            (folder / f"{name}.txt").write_text(text)
    gates = Path("configs/gates.yaml")
    gates.write_text(gates.read_text().replace("run_mode: enabled", "run_mode: dry_run"))

    assert pruneflow_here("configure", "mine") == 0
    done = run("flows.cli", "run", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unenforced  version 1 of my-model-pruned is the candidate" in done.stdout
    documents = json.loads(Path("data/calibration/documents/manifest.json").read_text())
    assert set(documents["domains"]) == {"contracts", "technical", "code"}
    assert documents["domains"]["contracts"]["licences"] == ["LicenseRef-ours"]
    assert (
        read_round_record(Path("data/model")).parameters
        < read_round_record(Path("data/checkpoints/dense")).parameters
    )
    summary = json.loads(Path("data/reports/summary.json").read_text())
    assert "contracts" in summary["perplexity"]["domains"] and summary["reload"]["ok"]
