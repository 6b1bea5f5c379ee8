"""Speed and memory of the data stages for increasing amounts of text.

Writes text of realistic lengths (with some duplicates, near-duplicates, e-mail addresses and pasted
questions) as .jsonl.gz to a temporary workspace, and runs the stages documents, validate and
calibration on it, each in a new process that reports its wall time and peak memory (VmHWM). The
table is not sampled: it has every document. Writes benchmarks/results/data.json.

    python benchmarks/data.py [--scales 1 10 100] [--stages documents validate calibration]
"""

import argparse
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy
import yaml

from pruneflow.artifacts import read_json, write_json, write_manifest
from pruneflow.data.documents import build_documents
from pruneflow.data.validation import validate_documents
from pruneflow.models.digests import tokenizer_digest
from pruneflow.models.loading import load_tokenizer
from pruneflow.settings.calibration import CalibrationSettings, DocumentSettings
from pruneflow.tokens.calibration_set import build_blocks

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/data.json"
DEFAULT_DOCUMENTS = 7000
"""Approximate number of documents in the default table."""
DOMAINS = [f"domain{number}" for number in range(10)]
STAGES = ("documents", "validate", "calibration")
SEED = 0
QUESTIONS = 600
SEQUENCES = 480
"""Calibration sequences, ten times the demo's."""

# Lengths of the default table: median 780 characters, mean 2,350, at most 20,000.
MEDIAN_CHARACTERS, SPREAD, LONGEST = 780, 1.5, 20_000
LETTERS_PER_WORD = 6


def texts(count: int, seed: int) -> Iterator[str]:
    """Random English words, with their frequencies in Python's help topics."""
    found = re.findall(r"[A-Za-z]{1,20}[,.]?", " ".join(topics[name] for name in sorted(topics)))
    vocabulary = numpy.array(found)
    generator = numpy.random.default_rng(seed)
    last = ""
    for number in range(count):
        kind = number % 100
        length = MEDIAN_CHARACTERS * float(numpy.exp(SPREAD * generator.standard_normal()))
        words = int(min(LONGEST, max(100.0, length)) / LETTERS_PER_WORD)
        text = " ".join(vocabulary[generator.integers(len(vocabulary), size=words)])
        if kind == 50:
            text = last
        elif kind == 51:
            text = f"{last} Once more, with another end."
        elif kind == 52:
            text = f"{text}\nAsk jane.doe{number}@example.org or +44 20 7946 0958."
        elif kind == 53:
            text = f"{text} \u2013 \u201ccaf\u00e9\u201d, FranÃ§ois said."
        yield text
        last = text


def workspace(root: Path, scale: int) -> None:
    """Write text, domains and questions."""
    folder = root / "data/text"
    folder.mkdir(parents=True)
    per_domain = DEFAULT_DOCUMENTS * scale // len(DOMAINS)
    for index, domain in enumerate(DOMAINS):
        with gzip.open(folder / f"{domain}.jsonl.gz", "wt", compresslevel=1) as stream:
            for text in texts(per_domain, SEED + index):
                stream.write(json.dumps({"text": text}) + "\n")
    (root / "domains.yaml").write_text(
        yaml.safe_dump(
            {
                domain: [
                    {
                        "kind": "files",
                        "files": [f"data/text/{domain}.jsonl.gz"],
                        "licence": "CC0-1.0",
                    }
                ]
                for domain in DOMAINS
            }
        )
    )
    write_json(root / "sources.lock", {"files": {}, "hub": {}, "python": ""})
    (root / "benchmarks").mkdir()
    asked = texts(QUESTIONS, SEED + 1000)
    with (root / "benchmarks/task.jsonl").open("w") as stream:
        for number, text in enumerate(asked):
            question = {"id": f"task-{number}", "question": text[:300]}
            stream.write(json.dumps({**question, "choices": ["yes", "no"], "label": 0}) + "\n")
    write_manifest(root / "benchmarks")


def run(stage: str, root: Path, scale: int) -> dict[str, Any]:
    """Run one stage in this process; returns its wall time in seconds and facts of its output."""
    settings = DocumentSettings(
        # Twice the mean, because splits vary in size.
        domains=DOMAINS,
        max_per_domain=2 * DEFAULT_DOCUMENTS * scale // len(DOMAINS),
    )
    out = root / "documents"
    began = time.perf_counter()
    if stage == "documents":
        manifest = build_documents(
            settings, root / "domains.yaml", root / "sources.lock", root / "benchmarks", out, root
        )
        domains = manifest["domains"].values()
        facts = {
            "documents": sum(domain["documents"] for domain in domains),
            "characters": sum(domain["characters"] for domain in domains),
            "dropped": sum(sum(domain["dropped"].values()) for domain in domains),
        }
    elif stage == "validate":
        validate_documents(out, root / "benchmarks", settings, root / "validation.json")
        facts = {}
    else:
        dense = ROOT / "data/checkpoints/dense"
        build_blocks(
            CalibrationSettings(sequences=SEQUENCES),
            DOMAINS,
            out,
            load_tokenizer(dense),
            tokenizer_digest(dense),
            root / "set",
            root / "held_out",
        )
        facts = {}
    return {"seconds": round(time.perf_counter() - began, 1), **facts}


def child(stage: str, root: Path, scale: int) -> None:
    """Run one stage and print its results as the last line."""
    figures = run(stage, root, scale)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**figures, "peak_mb": round(int(peak.split()[1]) / 1024)}))


def measure(scale: int, stages: list[str]) -> dict[str, Any]:
    """Run the stages in order in a new workspace."""
    read = DEFAULT_DOCUMENTS * scale
    figures: dict[str, Any] = {"scale": scale, "documents_read": read}
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as name:
        workspace(Path(name), scale)
        for stage in stages:
            command = [sys.executable, "-m", "benchmarks.data", "--child", stage, name, str(scale)]
            done = subprocess.run(
                command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            figures[stage] = json.loads(done.splitlines()[-1])
            figures[stage]["documents_per_second"] = round(read / figures[stage]["seconds"])
            print(scale, stage, figures[stage], flush=True)
    return figures


def machine() -> dict[str, Any]:
    """Versions of the libraries, and the machine."""
    packages = ("pyarrow", "duckdb", "py3langid", "ftfy", "datasketch", "phonenumbers")
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--child", nargs=3, metavar=("STAGE", "FOLDER", "SCALE"))
    arguments = parser.parse_args()
    if arguments.child:
        stage, folder, scale = arguments.child
        return child(stage, Path(folder), int(scale))
    earlier = read_json(RESULT)["scales"] if RESULT.exists() else []
    found = {row["scale"]: row for row in earlier}
    for scale in arguments.scales:
        found[scale] = measure(scale, arguments.stages)
        write_json(
            RESULT,
            {
                "what": "stages of the calibration data on generated text, by its size",
                "default_documents": DEFAULT_DOCUMENTS,
                "seed": SEED,
                "scales": [found[size] for size in sorted(found)],
                **machine(),
            },
        )


if __name__ == "__main__":
    main()
