"""Datasets of the Hugging Face hub: local copies, commits, and a hub that does not answer."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import sha256_file
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Reading
from tests.unit.source_example import documents, texts


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data/text").mkdir(parents=True)
    return tmp_path


def test_a_local_copy_of_a_hub_dataset_is_streamed(root):
    folder = root / "data/text/copy"
    folder.mkdir()
    rows = [{"body": f"row {number}"} for number in range(5)] + [{"body": None}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "hub", "dataset": "data/text/copy", "template": "{body}"}
    reading = Reading(root, Lock())
    found = documents(root, reading, **source, rows=3)
    assert [document.text for document in found] == ["row 0", "row 1", "row 2"]
    assert found[2].place == "data/text/copy, row 3"
    digest = sha256_file(folder / "train.jsonl")
    assert reading.text_files == {"data/text/copy/train.jsonl": digest}
    assert (reading.hub, texts(root, **source)[5:]) == ({}, [""])
    with pytest.raises(InputError, match=r"source data/text/copy.*cannot be read.*split"):
        texts(root, **source, split="nowhere")
    with pytest.raises(InputError, match=r"has no field text \(it has body\): correct `template`"):
        texts(root, kind="hub", dataset="data/text/copy")


def test_a_local_copy_of_conversations_and_of_dates_out_of_range(root):
    folder = root / "data/text/copy"
    folder.mkdir()
    late = pyarrow.array([0, 2**62]).view(pyarrow.timestamp("us"))
    messages = [[{"role": "user", "content": f"Question {number}?"}] for number in range(2)]
    table = pyarrow.table({"messages": messages, "late": late})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    source = {"kind": "hub", "dataset": "data/text/copy"}
    found = texts(root, **source, template="{messages}", rows=1)
    assert found == ["user: Question 0?"]
    with pytest.raises(InputError, match=r"data/text/copy cannot be read \(.*out of range"):
        texts(root, **source, template="{late}")


def test_a_missing_copy_or_one_outside_the_text_folder_is_refused(root):
    (root / "copy").mkdir()
    with pytest.raises(InputError, match="write dataset: data/text/copy"):
        texts(root, kind="hub", dataset="copy", revision="0" * 40)
    with pytest.raises(InputError, match="data/text/none has no files"):
        texts(root, kind="hub", dataset="data/text/none")


def test_a_hub_id_needs_a_commit_in_the_yaml_or_the_lock(root):
    source = {"kind": "hub", "dataset": "someone/something"}
    for lock in (None, Lock(hub={"someone/other": "1" * 40})):
        with pytest.raises(InputError, match="run `pruneflow data refresh` where there is a net"):
            texts(root, Reading(root, lock), **source)
    with pytest.raises(InputError, match="revision"):
        texts(root, **source, revision="main")


@pytest.mark.parametrize("pinned", ["yaml", "lock"])
def test_a_hub_id_is_read_at_its_commit(root, monkeypatch, pinned):
    asked: dict[str, object] = {}

    def load_dataset(name: str, subset: str | None, **options: object) -> list[dict[str, str]]:
        asked.update(name=name, subset=subset, **options)
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setattr("pruneflow.data.source_kinds.load_dataset", load_dataset)
    lock = Lock(hub={"someone/something": "1" * 40})
    source = {"kind": "hub", "dataset": "someone/something", "subset": "en", "split": "test"}
    source["folder"] = "data/short"
    if pinned == "yaml":
        source["revision"] = "2" * 40
    reading = Reading(root, lock)
    assert texts(root, reading, **source) == ["a", "b"]
    commit = ("2" if pinned == "yaml" else "1") * 40
    assert asked == {
        "name": "someone/something",
        "subset": "en",
        "data_dir": "data/short",
        "split": "test",
        "revision": commit,
        "streaming": True,
    }
    assert reading.hub == {"someone/something": commit}


def test_an_unreachable_hub_is_one_clear_line(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be read.*where the hub can be reached") as error:
        texts(root, kind="hub", dataset="someone/something", revision="0" * 40)
    assert "\n" not in str(error.value)
