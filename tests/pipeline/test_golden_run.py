"""The main job on real weights and real text, with a small budget, as a user runs it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pruneflow.models.digests import model_digest
from pruneflow.plan import load_profile
from pruneflow.settings.pipeline import parse_settings, write_settings
from tests.pipeline.commands import environment, pruneflow_here, repro, run
from tests.servers import ask, served

# Minutes where the processor has no instructions for bfloat16.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def pruneflow(*arguments):
    return run("flows.cli", *arguments, timeout=2700)


@pytest.fixture
def small_budget(real_workspace):
    """The demo's settings with three domains, little text, two rounds and few questions."""
    values = load_profile("demo").model_dump(mode="json")
    values["calibration"].update({"sequences": 12, "validation_sequences": 1, "test_sequences": 3})
    values["calibration"]["test_sequence_length"] = 128
    domains = ["encyclopaedic", "narrative", "code"]
    values["documents"].update({"domains": domains, "max_per_domain": 60})
    values["rounds"] = {
        "r1": {"parent": "dense", "ratio": 0.03},
        "r2": {"parent": "r1", "ratio": 0.06},
    }
    values["final_round"] = "r2"
    tasks = {"piqa": 10, "siqa": 10}
    values["evaluation"].update({"tasks": tasks, "bootstrap_samples": 100})
    values["latency"].update({"prompt_tokens": 32, "new_tokens": 4, "repeats": 6, "max_seconds": 0})
    write_settings(parse_settings(values, "test"))
    gates = {
        "run_mode": "enabled",
        "gates": [
            {"metric": metric, "comparison": comparison, "limit": limit, "why": "a test"}
            for metric, comparison, limit in (
                ("block_ratio", "at_least", 0.06),
                ("reload_ok", "at_least", 1),
                ("perplexity_ratio_mean", "at_most", 1.8),
                ("perplexity_ratio_worst", "at_most", 6.0),
            )
        ],
    }
    Path("configs/gates.yaml").write_text(yaml.safe_dump(gates))
    return gates


def status(capfd):
    capfd.readouterr()
    assert pruneflow_here("status", "--json") == 0
    return json.loads(capfd.readouterr().out)


def test_the_main_job_on_real_weights(small_budget, capfd):
    done = pruneflow("run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    for words in ("data/reports/report.html", "mlflow ui", "is in production"):
        assert words in done.stdout
    summary = json.loads(Path("data/reports/summary.json").read_text())
    _check_perplexity_by_hand(summary)
    _check_plain_process_continues_sensibly()
    _check_mlflow(summary)
    _check_served()
    first = status(capfd)
    assert first["production"]["version"] == first["candidate"]["version"] == "1"
    assert first["production"]["model_digest"] == summary["digests"]["pruned"]
    assert first["production"]["data_digest"] == summary["digests"]["calibration_set"]

    # Gates that the model cannot meet: reasons, exit code 1, production untouched, nothing redone.
    small_budget["gates"][2]["limit"] = 0.5
    Path("configs/gates.yaml").write_text(yaml.safe_dump(small_budget))
    before = {path: path.stat().st_mtime_ns for path in Path("data/checkpoints").rglob("*")}
    refused = pruneflow("run")
    assert refused.returncode == 1, refused.stderr[-3000:]
    assert "perplexity_ratio_mean" in refused.stdout
    assert before == {p: p.stat().st_mtime_ns for p in Path("data/checkpoints").rglob("*")}
    assert status(capfd) == first

    # Made once more, in another process, a round is the same model.
    shutil.rmtree("data/checkpoints/r2")
    shutil.rmtree(".dvc/cache")
    assert repro("-s", "round@r2") == ["round@r2"]
    assert model_digest(Path("data/checkpoints/r2")) == summary["digests"]["pruned"]


def _check_perplexity_by_hand(summary):
    """Every window alone, tokens 2..T, in the stated type, by nothing of the engine's."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    blocks = load_file("data/calibration/held_out/blocks.safetensors")
    for name, directory in (("dense", "data/checkpoints/dense"), ("pruned", "data/model")):
        dtype = getattr(torch, summary["latency"]["dtype"])
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        for domain, values in summary["perplexity"]["domains"].items():
            losses = []
            for window in blocks[f"test/{domain}"].long():
                with torch.no_grad():
                    logits = model(window[None]).logits[0, :-1].float()
                chosen = logits.log_softmax(-1)[torch.arange(len(window) - 1), window[1:]]
                losses.append(-chosen)
            by_hand = math.exp(torch.cat(losses).double().mean())
            assert values[name] == pytest.approx(by_hand, rel=0.02), (name, domain)


def _check_plain_process_continues_sensibly():
    """Plain transformers, somewhere else, without this project."""
    model = Path("data/model").absolute()
    script = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(model)!r})
tokenizer = AutoTokenizer.from_pretrained({str(model)!r})
for prompt in ("One, two, three,", "The opposite of hot is"):
    ids = tokenizer(prompt, return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=model.parent
    )
    assert done.returncode == 0, done.stderr
    assert "One, two, three, four" in done.stdout
    assert "The opposite of hot is cold" in done.stdout


def _check_served():
    """The version in production continues a prompt over HTTP, and a bad request harms nothing."""
    with served(environment()) as address:
        good = {"inputs": ["One, two, three,"], "params": {"max_new_tokens": 4}}
        code, answer = ask(address, good)
        assert code == 200 and "four" in answer["predictions"][0], answer
        assert ask(address, "no object")[0] == 400
        assert ask(address, good) == (code, answer)


def _check_mlflow(summary):
    import mlflow

    store = f"sqlite:///{Path('mlflow/mlflow.db').absolute()}"
    client = mlflow.MlflowClient(store, store)
    version = client.get_model_version_by_alias("smollm2-135m-pruned", "production")
    run = client.get_run(version.run_id)
    assert run.data.params["pruning.score"] == "mask_fisher"
    assert run.data.metrics["perplexity/mean_ratio/value"] == pytest.approx(
        summary["perplexity"]["mean_ratio"]["value"]
    )
    (dataset,) = [item.dataset for item in run.inputs.dataset_inputs]
    assert summary["digests"]["calibration_set"].startswith(dataset.digest)
    names = {item.path for item in client.list_artifacts(version.run_id, "reports")}
    assert {"reports/report.html", "reports/summary.json", "reports/decision.json"} <= names
