"""A summary whose files have changed since is stale, and says which."""

from pathlib import Path

import pytest

from pruneflow.artifacts import sha256_json, write_json, write_manifest
from pruneflow.judge.freshness import stale
from pruneflow.models.digests import model_digest
from pruneflow.settings.pipeline import parse_settings
from tests.unit.evaluation_example import summary as summary_with

FOLDERS = {
    "documents": "data/calibration/documents",
    "calibration_set": "data/calibration/set",
    "held_out": "data/calibration/held_out",
    "questions": "data/questions",
}
SETTINGS = parse_settings(
    {
        "model": {"name": "toy", "source": "dense"},
        "documents": {"domains": ["law"]},
        "rounds": {"r1": {"parent": "dense", "ratio": 0.1}},
        "final_round": "r1",
    },
    Path("toy"),
)


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """A workspace whose files are those that the summary was made from."""
    monkeypatch.chdir(tmp_path)
    digests = {}
    for number, (key, name) in enumerate(FOLDERS.items()):
        folder = Path(name)
        folder.mkdir(parents=True)
        (folder / "file.txt").write_text(str(number))
        digests[key] = write_manifest(folder)["digest"]
    reports = {}
    for name in ("baseline", "evaluation", "latency"):
        write_json(Path(f"data/reports/{name}.json"), {"what": name})
        reports[name] = sha256_json({"what": name})
    Path("data/model").mkdir()
    Path("data/model/config.json").write_text("{}")
    settings = SETTINGS.digest()
    pruned = model_digest(Path("data/model"))
    others = {"dense": "d", "tokenizer": "b", "settings": settings, "pruned": pruned}
    return summary_with(digests={**digests, **others, "reports": reports})


def test_nothing_is_stale_where_nothing_changed(summary):
    assert stale(summary, SETTINGS) == []


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("registry", {"promotion": "manual"}),
        ("notify", {"webhook": "https://example.org", "runs": "all"}),
    ],
)
def test_promotion_and_notification_do_not_make_a_report_stale(summary, section, changes):
    values = getattr(SETTINGS, section).model_copy(update=changes)
    assert stale(summary, SETTINGS.model_copy(update={section: values})) == []


def test_changed_settings_are_named(summary):
    changed = SETTINGS.model_copy(
        update={"evaluation": SETTINGS.evaluation.model_copy(update={"seed": 7})}
    )
    (sentence,) = stale(summary, changed)
    assert "configs/pipeline.yaml is not what it was made from" in sentence


@pytest.mark.parametrize(
    "name",
    [
        "data/model",
        *FOLDERS.values(),
        *(f"data/reports/{name}.json" for name in ("baseline", "evaluation", "latency")),
    ],
)
def test_a_changed_file_or_folder_is_named(summary, name):
    path = Path(name)
    if path.is_file():
        write_json(path, {"what": "better"})
    else:
        (path / "config.json").write_text('{"other": 1}')
        if path != Path("data/model"):
            write_manifest(path)
    (sentence,) = stale(summary, SETTINGS)
    assert f"{name} is not what it was made from" in sentence


def test_a_missing_file_is_named(summary):
    Path("data/reports/baseline.json").unlink()
    (sentence,) = stale(summary, SETTINGS)
    assert "data/reports/baseline.json is missing" in sentence
