"""A small workspace: two domains in files below data/text, and five evaluation questions."""

import json
import os
import random
import shutil
from pathlib import Path

import pandas
import pytest

from pruneflow.artifacts import write_json, write_manifest
from pruneflow.data.documents import DROPPED, TABLE, build_documents
from pruneflow.data.validation import validate_documents
from pruneflow.settings.calibration import DocumentSettings

os.environ["GX_ANALYTICS_ENABLED"] = "false"

WORDS = ("river", "stone", "cloud", "paper", "winter", "garden", "silver", "engine", "letter")
MOTS = ("rivière", "pierre", "nuage", "papier", "hiver", "jardin", "argent", "lettre", "maison")
QUESTION = (
    "After the long winter the gardener wanted to plant seeds again but the frozen ground "
    "was still far too hard for his old spade"
)


def sentence(seed: int, words: int = 30) -> str:
    return f"Note {seed}: the " + " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def phrase(seed: int, words: int = 30) -> str:
    return f"Lettre {seed}: la " + " ".join(random.Random(seed).choices(MOTS, k=words)) + "."


class Workspace:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.domains_file = root / "configs/domains.yaml"
        self.lock_file = root / "data/sources.lock"
        self.benchmarks = root / "data/questions"
        self.out = root / "data/calibration/documents"
        self.validation = root / "data/calibration/validation.json"
        self.settings = DocumentSettings(domains=["notes", "letters"])

    def make(self) -> None:
        """Write the texts and the question."""
        write_json(self.lock_file, {"files": {}})
        self.benchmarks.mkdir(parents=True)
        question = {"id": "t-1", "question": QUESTION, "choices": ["wait", "dig"], "label": 0}
        (self.benchmarks / "task.jsonl").write_text(json.dumps(question) + "\n")
        write_manifest(self.benchmarks)
        self.domains_file.parent.mkdir()
        self.domains_file.write_text(
            "notes:\n"
            "- {kind: files, files: [data/text/notes.jsonl], licence: MIT}\n"
            "letters:\n"
            "- {kind: files, files: [data/text/letters/*.txt], licence: CC0-1.0, language: fr}\n"
            "empty: []\n"
        )
        self.write_notes([sentence(number) for number in range(60)])
        (self.root / "data/text/letters").mkdir()
        for number in range(30):
            path = self.root / f"data/text/letters/{number:02}.txt"
            path.write_text(phrase(1000 + number))

    def write_notes(self, texts: list[str]) -> None:
        path = self.root / "data/text/notes.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def add_letter_source(self, text: str) -> None:
        """A second source of the domain letters: one English text."""
        (self.root / "data/text/more.txt").write_text(text)
        source = "- {kind: files, files: [data/text/more.txt], licence: MIT}\n"
        domains = self.domains_file.read_text().replace("empty: []\n", f"{source}empty: []\n")
        self.domains_file.write_text(domains)

    def build(self, **changes) -> dict:
        settings = DocumentSettings(**{**self.settings.model_dump(), **changes})
        return build_documents(
            settings, self.domains_file, self.lock_file, self.benchmarks, self.out, self.root
        )

    def table(self) -> pandas.DataFrame:
        """The documents, as built."""
        return pandas.read_parquet(self.out / TABLE)

    def dropped(self) -> list[dict[str, str]]:
        """The dropped documents."""
        return pandas.read_parquet(self.out / DROPPED).to_dict("records")

    def validate(self) -> dict:
        return validate_documents(self.out, self.benchmarks, self.settings, self.validation)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.make()
    return workspace


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose documents are built and validated, to be copied."""
    workspace = Workspace(tmp_path_factory.mktemp("validated"))
    workspace.make()
    workspace.build()
    workspace.validate()
    return workspace.root


@pytest.fixture
def built(validated: Path, tmp_path: Path) -> Workspace:
    """A workspace whose documents are built and validated."""
    return Workspace(shutil.copytree(validated, tmp_path / "built"))


@pytest.fixture
def question() -> str:
    return QUESTION
