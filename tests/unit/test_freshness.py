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


def test_where_promotion_goes_is_no_matter_of_the_report(summary):
    registry = SETTINGS.registry.model_copy(update={"promotion": "manual"})
    assert stale(summary, SETTINGS.model_copy(update={"registry": registry})) == []


def test_who_hears_of_it_is_no_matter_of_the_report(summary):
    notify = SETTINGS.notify.model_copy(update={"webhook": "https://example.org", "runs": "all"})
    assert stale(summary, SETTINGS.model_copy(update={"notify": notify})) == []


def test_changed_settings_are_named(summary):
    changed = SETTINGS.model_copy(
        update={"evaluation": SETTINGS.evaluation.model_copy(update={"seed": 7})}
    )
    (sentence,) = stale(summary, changed)
    assert "configs/pipeline.yaml is not what it was made from" in sentence


@pytest.mark.parametrize("name", ["baseline", "evaluation", "latency"])
def test_a_changed_measurement_is_named(summary, name):
    write_json(Path(f"data/reports/{name}.json"), {"what": "better"})
    (sentence,) = stale(summary, SETTINGS)
    assert f"data/reports/{name}.json is not what it was made from" in sentence


@pytest.mark.parametrize("key", list(FOLDERS))
def test_changed_data_is_named(summary, key):
    folder = Path(FOLDERS[key])
    (folder / "file.txt").write_text("other")
    write_manifest(folder)
    (sentence,) = stale(summary, SETTINGS)
    assert f"{folder} is not what it was made from" in sentence


def test_another_model_is_named(summary):
    Path("data/model/config.json").write_text('{"other": 1}')
    (sentence,) = stale(summary, SETTINGS)
    assert "data/model is not what it was made from" in sentence


def test_a_missing_file_is_named(summary):
    Path("data/reports/baseline.json").unlink()
    (sentence,) = stale(summary, SETTINGS)
    assert "data/reports/baseline.json is missing" in sentence
