"""`data diff`: changes of documents by domain and source, tokens, and licences."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import write_manifest
from pruneflow.data.data_diff import DataState, compare, load_state
from pruneflow.errors import DamagedArtifactError

ROWS = [("law", "acts", "a"), ("law", "acts", "b"), ("law", "cases", "c"), ("news", "x", "d")]
LICENCES = {"law": ["MIT"], "news": ["CC0-1.0"]}
TOKENS = {"law": 64, "news": 64}


def state(
    folder: Path,
    rows: list[tuple[str, str, str]],
    licences: dict[str, list[str]],
    tokens: dict[str, int],
) -> DataState:
    """Write a state; rows are domain, source and text."""
    documents, chosen = folder / "documents", folder / "set"
    documents.mkdir(parents=True)
    chosen.mkdir()
    table = pyarrow.Table.from_pylist(
        [dict(zip(("domain", "source", "sha256"), row, strict=True)) for row in rows]
    )
    pyarrow.parquet.write_table(table, documents / "documents.parquet")
    manifest = write_manifest(
        documents, domains={name: {"licences": found} for name, found in licences.items()}
    )
    (chosen / "blocks").write_text(str(tokens))
    write_manifest(
        chosen,
        documents=manifest["digest"],
        domains={name: {"calibration": {"tokens": count}} for name, count in tokens.items()},
    )
    return load_state(documents, chosen)


@pytest.fixture
def before(tmp_path: Path) -> DataState:
    return state(tmp_path / "before", ROWS, LICENCES, TOKENS)


def test_a_state_does_not_differ_from_itself(before: DataState) -> None:
    changes = compare(before, before)
    assert changes["domains"] == {}
    assert (changes["added"], changes["removed"]) == (0, 0)
    assert changes["licences"] == {"gained": [], "lost": []}
    assert changes["digests"]["documents"]["before"] == changes["digests"]["documents"]["after"]
    assert changes["set_is_current"]


def test_documents_are_counted_by_domain_and_source(before: DataState, tmp_path: Path) -> None:
    rows = [("law", "acts", "a"), ("law", "acts", "e"), ("law", "acts", "f"), ("news", "x", "d")]
    after = state(tmp_path / "after", rows, LICENCES, TOKENS)
    assert compare(before, after)["domains"] == {
        "law": {
            "added": 2,
            "removed": 2,
            "sources": {"acts": {"added": 2, "removed": 1}, "cases": {"added": 0, "removed": 1}},
            "tokens": {"before": 64, "after": 64},
            "licences": {"gained": [], "lost": []},
        }
    }


def test_added_and_removed_domains_are_shown(before: DataState, tmp_path: Path) -> None:
    rows = [*ROWS[:3], ("maths", "y", "g")]
    licences = {"law": ["MIT"], "maths": ["MIT"]}
    after = state(tmp_path / "after", rows, licences, {"law": 64, "maths": 32})
    changes = compare(before, after)
    assert list(changes["domains"]) == ["maths", "news"]
    assert changes["domains"]["maths"]["tokens"] == {"before": 0, "after": 32}
    assert changes["domains"]["news"]["removed"] == 1
    assert changes["domains"]["news"]["licences"] == {"gained": [], "lost": ["CC0-1.0"]}
    assert changes["licences"] == {"gained": [], "lost": ["CC0-1.0"]}


def test_a_licence_or_a_token_count_alone_is_a_change(before: DataState, tmp_path: Path) -> None:
    licences = {**LICENCES, "law": ["MIT", "X11"]}
    after = state(tmp_path / "after", ROWS, licences, {"law": 64})
    changes = compare(before, after)["domains"]
    assert changes["law"]["licences"] == {"gained": ["X11"], "lost": []}
    assert changes["news"]["tokens"] == {"before": 64, "after": 0}
    assert changes["law"]["added"] == changes["news"]["removed"] == 0


def test_a_set_of_other_documents_is_not_current(before: DataState, tmp_path: Path) -> None:
    after = state(tmp_path / "after", [("law", "acts", "a")], {"law": ["MIT"]}, {"law": 64})
    stale = DataState(after.table, after.documents, before.calibration)
    assert not compare(before, stale)["set_is_current"]


def test_a_damaged_table_is_not_compared(before: DataState) -> None:
    before.table.write_bytes(b"no table")
    with pytest.raises(DamagedArtifactError, match=r"documents.parquet is damaged"):
        load_state(before.table.parent, before.table.parents[1] / "set")
