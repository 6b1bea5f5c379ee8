"""Settings: what is refused, in which words; profiles and plans."""

import copy
import itertools
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pruneflow.errors import InputError
from pruneflow.plan import configure, load_profile, plan, plan_rounds
from pruneflow.settings.pipeline import load_settings, parse_settings, write_settings
from pruneflow.settings.pruning import Target
from tests.conftest import ROOT
from tests.round_records import record_as_done

WHERE = Path("configs/pipeline.yaml")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the real profiles and the demo's settings."""
    profiles = tmp_path / "configs/profiles"
    profiles.mkdir(parents=True)
    for path in (ROOT / "configs/profiles").glob("*.yaml"):
        (profiles / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    configure("demo")
    return tmp_path


def _changed(values, keys, value):
    values = copy.deepcopy(values)
    place = values
    *path, last = keys.split(".")
    for key in path:
        place = place[key]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("rounds.r3.ratio", 0, "rounds.r3.ratio is 0"),
        ("rounds.r3.ratio", 1.2, "rounds.r3.ratio is 1.2: .*less than 1"),
        ("rounds.r3.ratio", -1, "rounds.r3.ratio is -1: .*greater than 0"),
        ("rounds.r3.ratio", 0.1, "target ratio 0.1, and the previous round ratio 0.135"),
        ("rounds.r3.parent", "r1", "rounds.r3.parent must be r2"),
        ("rounds.r3.ratio", ".nan", "rounds.r3.ratio"),
        ("final_round", "r2", "final_round must be r3"),
        ("pruning.rounds", 3, "unknown key pruning.rounds"),
        ("pruning.score", "best", "pruning.score is 'best'"),
        ("calibration.sequences", 7, "below the number of domains"),
        ("calibration.weights", {"poetry": 1}, "poetry, which is not in documents.domains"),
        ("calibration.domains", ["poetry"], "domains names poetry, which is not in documents"),
        ("calibration.domains", ["law", "law"], "calibration.domains lists a domain twice"),
        ("calibration.weights", {"law": 0.4}, "weights add up to 0.4: make them add up to 1"),
        ("calibration.weights", {"law": 1}, "calibration.weights has no entry for encyclopaedic"),
        ("calibration.tokens", {"law": 1000}, "with it set sequences to null"),
        ("calibration.sequences", None, "give sequences, or tokens of every domain"),
        ("documents.malformed", "ignore", "documents.malformed"),
        ("documents.domains", [], "documents.domains"),
        ("documents.domains", ["news", "news"], "twice"),
        ("registry.name", "a/b", "registry.name"),
        ("registry.name", "a%2Fb", "registry.name"),
        ("registry.name", "a?b", "registry.name"),
        ("registry.name", "a ", "registry.name"),
        ("documents.domains", [False], r"put it in quotes\)$"),
        ("notify.webhook", "htps://secret", r"notify.webhook must start with http:// or https://$"),
        ("notify.events", ["accepted"], "notify.events.0 is 'accepted'"),
        ("registry.tracking_uri", "http://ada:secret@mlflow", "contains a password"),
        ("typo", 1, "unknown key typo"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_key(project, keys, value, words):
    values = yaml.safe_load(WHERE.read_text())
    with pytest.raises(InputError, match=words) as caught:
        parse_settings(_changed(values, keys, value), WHERE)
    message = str(caught.value)
    assert "secret" not in message
    assert message.startswith("configs/pipeline.yaml: ")
    assert "\n" not in message


def test_a_missing_key_and_a_missing_file_and_broken_yaml(project):
    values = yaml.safe_load(WHERE.read_text())
    del values["final_round"]
    with pytest.raises(InputError, match="final_round is missing"):
        parse_settings(values, WHERE)
    WHERE.write_text("model: [")
    with pytest.raises(InputError, match="is not valid YAML"):
        load_settings()
    WHERE.unlink()
    with pytest.raises(InputError, match="pruneflow configure demo"):
        load_settings()


@pytest.mark.skipif(
    subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", str(WHERE)], cwd=ROOT, check=False
    ).returncode
    != 0,
    reason="configs/pipeline.yaml has been edited here, or this is no git checkout",
)
def test_the_committed_pipeline_is_the_demo_profile(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_settings() == load_profile("demo")


def test_what_is_written_is_read_back_whole(project):
    settings = load_settings()
    write_settings(settings)
    assert load_settings() == settings
    assert set(yaml.safe_load(WHERE.read_text())) == set(settings.model_dump())


def test_configure_keeps_a_file_that_the_user_has_changed(project):
    assert configure("demo") is None
    changed = WHERE.read_text().replace("ratio: 0.2", "ratio: 0.25")
    WHERE.write_text(changed)
    kept = configure("demo")
    assert kept is not None
    assert kept.read_text() == changed
    assert load_settings().rounds["r3"].ratio == 0.2


def test_an_unknown_profile_is_refused_and_the_known_are_named(project):
    with pytest.raises(InputError, match=r"no profile big .*demo"):
        configure("big")


def test_a_linear_schedule_has_equal_steps():
    assert plan_rounds(Target(ratio=0.3), 3, "linear") == {
        "r1": {"parent": "dense", "ratio": 0.1},
        "r2": {"parent": "r1", "ratio": 0.2},
        "r3": {"parent": "r2", "ratio": 0.3},
    }


def test_a_geometric_schedule_removes_the_same_share_of_what_is_left():
    ratios = [step["ratio"] for step in plan_rounds(Target(ratio=0.5), 4, "geometric").values()]
    left = [1.0, *(1 - ratio for ratio in ratios)]
    shares = [after / before for before, after in itertools.pairwise(left)]
    assert ratios[-1] == 0.5
    assert shares == pytest.approx([0.5**0.25] * 4, abs=1e-3)


def test_a_plan_changes_the_rounds_and_nothing_else(project):
    before = load_settings()
    plan(Target(ratio=0.3), 6, "geometric")
    after = load_settings()
    assert list(after.rounds) == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert (after.final_round, after.rounds["r6"].ratio) == ("r6", 0.3)
    assert after.model_copy(update={"rounds": before.rounds, "final_round": "r3"}) == before


def test_a_goal_in_parameters_is_counted_on_the_model_of_the_settings(project):
    dense = Path("data/checkpoints/dense")
    dense.mkdir(parents=True)
    source = load_settings().model.source
    record_as_done(dense, parameters=1000, source=source)
    assert plan(Target(parameters=800), 2, "linear").rounds["r1"].parameters == 900
    record_as_done(dense, parameters=1000, source="/models/another")
    with pytest.raises(InputError, match=f"is not of {re.escape(source)}: run `dvc repro model`"):
        plan(Target(parameters=800), 2, "linear")


@pytest.mark.parametrize(
    ("goal", "rounds", "schedule", "words"),
    [
        ({"ratio": 0.2}, 0, "linear", "1 to 100"),
        ({"ratio": 0.2}, 3, "steep", "linear or geometric"),
        ({"parameters": 100_000_000}, 3, "linear", "run `dvc repro model` first"),
    ],
)
def test_a_plan_out_of_range_is_refused_and_changes_nothing(project, goal, rounds, schedule, words):
    before = WHERE.read_text()
    with pytest.raises(InputError, match=words):
        plan(Target(**goal), rounds, schedule)
    assert WHERE.read_text() == before
