"""The calibration data through git and DVC: pushed, pulled in a clone, and compared."""

import json
import random
import shutil
from pathlib import Path

import pytest
import yaml

from pruneflow.errors import InputError
from pruneflow.paths import CALIBRATION_SET, DOCUMENTS, HELD_OUT
from pruneflow.settings.pipeline import parse_settings, write_settings
from tasks.dvc.data_history import changes_since
from tests.pipeline.commands import commit, contents, git, make, pruneflow_here, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORDS = (
    "the a and of in under over river stone cloud paper winter garden silver engine letter table "
    "window mountain green slow quiet early bright walks carries finds sings paints opens"
)


def note(seed: int) -> str:
    return f"Note {seed}: " + " ".join(random.Random(seed).choices(WORDS.split(), k=80)) + "."


def dvc(*arguments: str) -> None:
    done = run("dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def write_notes(seeds: range) -> None:
    lines = [json.dumps({"text": note(seed)}) + "\n" for seed in seeds]
    Path("data/text/notes.jsonl").write_text("".join(lines))


def write_domains(licence: str) -> None:
    source = {"kind": "files", "files": ["data/text/notes.jsonl"], "licence": "MIT"}
    letters = {"kind": "files", "files": ["data/text/letters/*.txt"], "licence": licence}
    domains = yaml.safe_dump({"notes": [source], "letters": [letters]})
    Path("configs/domains.yaml").write_text(domains)


@pytest.fixture
def versioned(real_workspace: Path, tiny_model_directory: Path) -> Path:
    """A git repository with two domains of local files, a DVC remote, and nothing run yet."""
    for name in (".gitignore", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, real_workspace / name)
    Path(".dvc/config").write_text("[core]\n    analytics = false\n    remote = store\n")
    dvc("remote", "add", "store", "../store")
    Path("data/text/letters").mkdir()
    for number in range(40):
        Path(f"data/text/letters/{number:02}.txt").write_text(note(1000 + number))
    write_notes(range(60))
    write_domains("CC0-1.0")
    values = {
        "model": {"source": str(tiny_model_directory), "dtype": "float32"},
        "compute": {"device": "cpu", "dtype": "float32"},
        "documents": {
            "domains": ["notes", "letters"],
            # Made-up text: what is tested is not whether it is good text.
            "language_confidence": 1,
            "min_compressed_share": 0,
        },
        "calibration": {
            "sequence_length": 32,
            "sequences": 8,
            "validation_sequences": 2,
            "test_sequence_length": 32,
            "test_sequences": 2,
        },
        "evaluation": {"tasks": {"piqa": 20, "siqa": 20}},
        "rounds": {"r1": {"parent": "dense", "ratio": 0.1}},
        "final_round": "r1",
    }
    write_settings(parse_settings(values, "test"))
    git("init", "-q", ".")
    commit("nothing run yet")
    return real_workspace


def test_the_data_is_pulled_bit_for_bit_and_a_diff_says_exactly_what_changed(
    versioned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make("environment", "model", "questions", "documents", "validate", "calibration")
    dvc("push")
    commit("first data")
    first = contents(Path("data/calibration"))
    assert {DOCUMENTS.name, CALIBRATION_SET.name, HELD_OUT.name, "validation.json"} <= {
        Path(name).parts[0] for name in first
    }

    clone = tmp_path / "clone"
    git("clone", "-q", str(versioned), str(clone))
    with monkeypatch.context() as patch:
        patch.chdir(clone)
        assert not contents(Path("data/calibration"))
        dvc("pull", "documents", "validate", "calibration")
        assert contents(Path("data/calibration")) == first
        assert changes_since("HEAD")["domains"] == {}

    assert changes_since("HEAD")["domains"] == {}
    write_notes(range(2, 63))  # two less, three more
    write_domains("CC-BY-4.0")
    make("documents", "validate", "calibration")
    capfd.readouterr()
    assert pruneflow_here("data", "diff", "HEAD", "--json") == 0
    changes = json.loads(capfd.readouterr().out)
    assert (changes["added"], changes["removed"]) == (3, 2)
    notes, letters = changes["domains"]["notes"], changes["domains"]["letters"]
    assert notes["sources"] == {"data/text/notes.jsonl": {"added": 3, "removed": 2}}
    assert notes["licences"] == {"gained": [], "lost": []}
    assert letters["sources"] == {}
    assert letters["licences"] == {"gained": ["CC-BY-4.0"], "lost": ["CC0-1.0"]}
    assert changes["licences"] == letters["licences"]
    manifest = json.loads((CALIBRATION_SET / "manifest.json").read_text())
    for name, facts in changes["domains"].items():
        assert facts["tokens"]["after"] == manifest["domains"][name]["calibration"]["tokens"]
        assert facts["tokens"]["before"] > 0
    assert changes["set_is_current"]
    assert pruneflow_here("data", "diff", "HEAD") == 0
    text = capfd.readouterr().out
    assert "notes: +3 -2 documents" in text and "licences gained: CC-BY-4.0" in text

    with pytest.raises(InputError, match=r"git knows no revision no-such-branch"):
        changes_since("no-such-branch")
    with pytest.raises(InputError, match=r"HEAD~1 has no dvc.lock"):
        changes_since("HEAD~1")
    shutil.rmtree(versioned / ".dvc/cache")
    shutil.rmtree(versioned.parent / "store")
    assert pruneflow_here("data", "diff", "HEAD") == 2
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and "`dvc fetch`" in errors
