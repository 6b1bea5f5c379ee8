"""`python toy.py STAGE` in a toy workspace: a stage that writes a few bytes, or misbehaves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pruneflow.artifacts import read_json, sha256_file, sha256_json, write_json, write_manifest
from pruneflow.errors import InputError, PruneflowError
from pruneflow.settings.pipeline import load_settings
from pruneflow.workspace import stage_lock


def model_digest(directory):
    """As the engine's, without torch, which takes longer to import than a stage to run."""
    return sha256_json({"config.json": sha256_file(directory / "config.json")})


def model(directory, content):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"content": content}))
    return model_digest(directory)


def main(name):
    settings = load_settings()
    with Path("executed.txt").open("a") as log:
        log.write(name + "\n")
    if Path(f"fail-{name}").exists():
        raise InputError(f"the toy stage {name} was told to fail: delete fail-{name}")
    if Path(f"flaky-{name}").exists():
        Path(f"flaky-{name}").unlink()
        raise OSError(5, "Input/output error")
    if Path(f"slow-{name}").exists():
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        Path("pids.json.new").write_text(json.dumps([os.getpid(), helper.pid]))
        Path("pids.json.new").rename("pids.json")
        time.sleep(120)
    print(f"the toy stage {name} says hello")
    print("a bar: 50%\ra bar: 100%", file=sys.stderr)
    if name == "calibration":
        out = Path("data/calibration/set")
        out.mkdir(parents=True, exist_ok=True)
        (out / "blocks.txt").write_text("tokens")
        write_manifest(out)
    elif name in settings.rounds:
        out = Path("data/checkpoints") / name
        ratio = settings.rounds[name].ratio
        digest = model(out, ratio)
        losses = {
            kind: {"law": {"nll": 1.0, "tokens": 9, "perplexity": p}}
            for kind, p in [("dense", 10), ("pruned", 12)]
        }
        record = {
            "round": name,
            "status": "done",
            "delivered": name,
            "delivered_digest": digest,
            "digest": digest,
            "dense": {"block_weights": 50, "neurons": 8},
            "target": {"ratio": ratio},
            "validation": losses,
        }
        write_json(out / "round.json", record)
    elif name == "select":
        model(Path("data/model"), settings.rounds[settings.final_round].ratio)
    elif name == "report":
        summary = json.loads(Path("summary.json").read_text())
        folders = {}
        for key in ("documents", "held_out"):
            folder = Path("data/calibration") / key
            folder.mkdir(parents=True, exist_ok=True)
            folders[key] = write_manifest(folder)["digest"]
        Path("data/questions").mkdir(exist_ok=True)
        pruned = model_digest(Path("data/model"))
        reports = {"baseline": {}, "evaluation": {"model": {"digest": pruned}}, "latency": {}}
        for key, content in reports.items():
            write_json(Path("data/reports") / f"{key}.json", content)
        summary["digests"] = {
            "dense": model_digest(Path("dense")),
            "pruned": pruned,
            "settings": settings.digest(),
            "calibration_set": read_json(Path("data/calibration/set/manifest.json"))["digest"],
            "questions": write_manifest(Path("data/questions"))["digest"],
            "tokenizer": "t",
            "reports": {key: sha256_json(content) for key, content in reports.items()},
            **folders,
        }
        write_json(Path("data/reports/summary.json"), summary)
        Path("data/reports/report.html").write_text("<p>toy</p>")


try:
    with stage_lock(sys.argv[1]):
        main(sys.argv[1])
except PruneflowError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
