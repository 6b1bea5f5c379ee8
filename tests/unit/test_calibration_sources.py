"""Sources in configs/domains.yaml, and the records read from them."""

import sys
from pathlib import Path

import pytest
import yaml

from pruneflow.artifacts import sha256_file
from pruneflow.data.record_template import TextRecord, Unreadable
from pruneflow.data.sources import known_domains, load_domains, read_source
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Reading
from tests.unit.source_example import documents, install, parsed, texts, write_domains

PACKAGE = "pruneflow_fixture_package"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A workspace, and an installed package that cannot be imported."""
    files = {
        "data/rows.jsonl": '{"title": "One", "text": "first"}\n\n'
        '{"title": "Two", "text": "second\\u2028line"}\n',
        "data/talk.yml": "conversations:\n- [Hi, Hello]\n- [Bye, See you]\n",
        "code.py": '"""The module."""\nraise RuntimeError\n\n\ndef run():\n    """Run it."""\n\n\n'
        'class Thing:\n    """A thing."""\n\n    def use(self):\n        """Use it."""\n\n\n'
        'def _hidden():\n    """Not shown."""\n',
    }
    install(monkeypatch, tmp_path / "site", PACKAGE, files)
    (tmp_path / "data/text").mkdir(parents=True)
    return tmp_path


def package(**source: object) -> dict[str, object]:
    return {"kind": "package", "package": PACKAGE, **source}


def text_files(*names: str, **source: object) -> dict[str, object]:
    return {"kind": "files", "files": [f"data/text/{name}" for name in names], **source}


def test_records_are_formatted_and_know_their_place(root):
    source = package(files=["data/*.jsonl"], template="{title}: {text} {{x}}", group="{title}")
    place = f"{PACKAGE}/data/rows.jsonl"
    assert documents(root, **source) == [
        TextRecord("One: first {x}", f"{place}, line 1", group="One"),
        TextRecord("Two: second\u2028line {x}", f"{place}, line 3", group="Two"),
    ]
    assert PACKAGE not in sys.modules


def test_records_of_a_nested_list_are_joined(root):
    source = package(files=["data/talk.yml"], records="conversations")
    assert texts(root, **source) == ["Hi\nHello", "Bye\nSee you"]
    assert texts(root, **source, join=2) == ["Hi\nHello\n\nBye\nSee you"]


def test_docstrings_are_taken_without_importing(root):
    source = package(files=["code.py"], content="docstrings")
    assert texts(root, **source) == [
        "The module.\n\nrun\n\nRun it.\n\nThing\n\nA thing.\n\nThing.use\n\nUse it."
    ]
    assert PACKAGE not in sys.modules


def test_the_standard_library_is_a_source(root):
    source = {"kind": "python", "content": "source", "files": ["this.py", "json/*.py"]}
    found = documents(root, **source)
    assert found[0].place == "this.py" and "Gur Mra bs Clguba" in found[0].text
    assert any("class JSONDecoder" in document.text for document in found)
    assert parsed(root, **source).language == "zxx"
    assert parsed(root, **source, language="en").language == "en"


def test_the_help_topics_are_a_source(root):
    source = {"kind": "python", "content": "topics"}
    found = documents(root, **source)
    assert "topic assert" in found[0].place and "assert" in found[0].text
    assert all(document.text for document in found)
    assert parsed(root, **source).language == "en"


def test_files_that_depend_on_the_machine_are_excluded(root):
    found = texts(root, kind="python", content="source", files=["_sysconfig*.py", "sysconfig.py"])
    assert len(found) == 1


def test_the_users_files_are_read_by_their_suffix(root):
    folder = root / "data/text"
    (folder / "README.md").write_text("put your text here")
    (folder / "a.txt.dvc").write_text("outs: []")
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / "a.txt").write_text("plain text with {braces}")
    (folder / "b.csv").write_text('text,other\n"two\nlines",1\n')
    (folder / "c.jsonl").write_text('{"text": "a record"}\n')
    (folder / "d.py").write_text("print('code')\n")
    reading = Reading(root, Lock())
    found = texts(root, reading, **text_files("*"))
    assert found == ["plain text with {braces}", "two\nlines", "a record", "print('code')"]
    assert reading.text_files["data/text/a.txt"] == sha256_file(folder / "a.txt")
    assert set(reading.text_files) == {
        f"data/text/{n}" for n in ("a.txt", "b.csv", "c.jsonl", "d.py")
    }


@pytest.mark.parametrize(
    "path", ["notes.txt", "/etc/hosts", "data/text/../secret.txt", "data/text"]
)
def test_a_file_outside_the_text_folder_is_refused(root, path):
    with pytest.raises(InputError, match=r"domain topic, source 1.*not in data/text: put"):
        texts(root, kind="files", files=[path])


@pytest.mark.parametrize("source", [text_files("*.txt"), text_files("**/*.txt"), {"kind": "hub"}])
def test_a_link_to_a_folder_in_the_text_folder_is_refused(root, tmp_path_factory, source):
    """DVC does not see what changes behind it."""
    folder = root / "data/text/own"
    folder.mkdir()
    (folder / "a.txt").write_text("a text")
    (folder / "b.txt").symlink_to(folder / "a.txt")  # DVC reads a link to a file
    source = {"dataset": "data/text/own", **source} if source["kind"] == "hub" else source
    if source["kind"] == "files":
        assert texts(root, **text_files("own/*.txt")) == ["a text", "a text"]
    (folder / "more").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(InputError, match=r"data/text/own/more is a link to a folder.*mount it"):
        texts(root, **source)


def test_a_file_is_found_by_its_name_whatever_characters_it_has(root):
    name = "".join(chr(code) for code in range(32, 127) if chr(code) != "/") + ".txt"
    for each, text in ((name, "all of them"), ("a[1].txt", "one"), ("a1.txt", "two")):
        (root / "data/text" / each).write_text(text)
    assert texts(root, **text_files(name)) == ["all of them"]
    assert texts(root, **text_files("a[1].txt")) == ["one"]
    (root / "data/text/a[1].txt").unlink()
    assert texts(root, **text_files("a[1].txt")) == ["two"]


def test_a_source_without_text_is_refused(root):
    (root / "data/text/a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="it has no text: correct the source"):
        texts(root, **text_files("a.jsonl"))


def test_an_unreadable_record_is_an_error_with_its_place_and_the_fix(root):
    (root / "data/text/a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(
        InputError,
        match=r"^domain topic, source data/text/a.jsonl: data/text/a.jsonl, line 2 is not valid "
        r"JSON.*: correct it, or set documents.malformed: skip",
    ):
        texts(root, **text_files("a.jsonl"))


def test_unreadable_records_can_be_skipped_and_are_listed(root):
    (root / "data/text/a.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n\n"\xff"\n{"text": "b"}\n')
    (root / "data/text/b.txt").write_bytes(b"\0\1")
    reading = Reading(root, Lock(), malformed="skip", max_record_bytes=100)
    found = documents(root, reading, **text_files("*"))
    assert [item.text for item in found if isinstance(item, TextRecord)] == ["a", "b"]
    skipped = [item for item in found if isinstance(item, Unreadable)]
    assert [(item.place, item.problem, item.reason) for item in skipped[1:]] == [
        ("data/text/a.jsonl, line 4", "is not UTF-8 text", "malformed"),
        ("data/text/b.txt", "is binary, not UTF-8 text", "binary"),
    ]
    assert skipped[0].place == "data/text/a.jsonl, line 2"


def test_a_source_whose_records_were_all_skipped_is_an_error_with_the_reason(root):
    (root / "data/text/a.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    reading = Reading(root, Lock(), malformed="skip")
    with pytest.raises(InputError, match=r"no text \(2 skipped; .*line 1 has no field text"):
        texts(root, reading, **text_files("a.jsonl"))


def test_source_code_longer_than_the_limit_is_refused(root):
    reading = Reading(root, None, max_record_bytes=100)
    with pytest.raises(InputError, match=r"code.py is longer than .*documents.max_record_mb"):
        texts(root, reading, **package(files=["code.py"], content="docstrings"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "web"}, "kind is 'web': use one of files, hub, package, python"),
        ({"kind": "python", "content": "source", "licence": "Free"}, "licence Free is unknown"),
        ({"kind": "python", "content": "source", "licence": None}, "licence"),
        (package(files=["data/rows.jsonl"], language="english language"), "language"),
        (package(files=["data/rows.jsonl"], colour="red"), "unknown key colour"),
        (package(files=[]), "files"),
        (
            package(files=["data/rows.jsonl"], template="{passage}"),
            f"{PACKAGE}/data/rows.jsonl, line 1 has no field passage (it has text, title)",
        ),
        (package(files=["data/none.jsonl"]), "data/none.jsonl matches no file"),
        (package(files=["../../x"]), "leaves its folder"),
        (package(files=["data/talk.yml"]), "set `records` to the path"),
        (package(files=["data/rows.jsonl"], separator="x"), "separator has no effect"),
        (
            package(files=["code.py"], content="docstrings", template="{text}"),
            "template has no effect",
        ),
        (package(files=["code.py"], content="docstrings", group="{text}"), "group has no effect"),
        ({"kind": "python", "content": "topics", "files": ["*.py"]}, "files has no effect"),
        ({"kind": "hub", "dataset": "a/b", "separator": "x"}, "separator has no effect"),
        ({"kind": "hub", "dataset": "a/b", "records": "x"}, "records has no effect"),
        ({"kind": "hub", "dataset": "data/text/a", "revision": "0" * 40}, "revision has no effect"),
        (package(package="not_installed_anywhere", files=["x"]), "not installed: run `make setup`"),
    ],
)
def test_a_source_that_cannot_be_read_says_where_and_why(root, source, words):
    with pytest.raises(InputError) as error:
        texts(root, **source)
    assert words in str(error.value)
    assert "topic" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_licence_is_required(tmp_path):
    path = tmp_path / "domains.yaml"
    path.write_text("topic: [{kind: files, files: [data/text/a.txt]}]")
    with pytest.raises(InputError, match="domain topic, source 1: licence is missing: add it"):
        load_domains(path)


def test_an_unreadable_file_is_named(root, monkeypatch):
    (root / "data/text/a.txt").write_text("text")

    def refuse(path: Path, mode: str = "r") -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (source,) = load_domains(write_domains(root, **text_files("a.txt")))["topic"]
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(Permission denied\)"):
        list(read_source("topic", source, Reading(root, None)))


@pytest.mark.parametrize("content", ["[]", "topic: text", "3: []", "topic:"])
def test_a_domains_file_must_be_a_mapping_of_lists(tmp_path, content):
    path = tmp_path / "domains.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match="list"):
        load_domains(path)


def test_known_domains_are_in_the_given_order(tmp_path):
    path = tmp_path / "domains.yaml"
    source = [{"kind": "python", "content": "topics", "licence": "PSF-2.0"}]
    path.write_text(yaml.safe_dump({"a": source, "b": source, "c": []}))
    assert list(known_domains(["b", "a"], path)) == ["b", "a"]
    with pytest.raises(InputError, match=r"domain d is not in .*known: a, b, c.*documents.domains"):
        known_domains(["a", "d"], path)
    with pytest.raises(InputError, match=r"domain c has no source: add one in"):
        known_domains(["c"], path)
