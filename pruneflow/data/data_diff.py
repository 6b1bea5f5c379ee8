"""Differences between two states of the calibration data: documents, tokens and licences."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pruneflow.artifacts import MANIFEST, read_json, verify_manifest
from pruneflow.data.documents import TABLE
from pruneflow.errors import DamagedArtifactError

MEMORY_LIMIT = "512MB"

# A text that moved to another source counts as removed from one and added to the other.
_CHANGED_DOCUMENTS = """
    WITH earlier AS (SELECT domain, source, sha256, true AS known FROM read_parquet(?)),
         later AS (SELECT domain, source, sha256, true AS known FROM read_parquet(?))
    SELECT domain,
           source,
           count(*) FILTER (earlier.known IS NULL) AS added,
           count(*) FILTER (later.known IS NULL) AS removed
    FROM earlier FULL JOIN later USING (domain, source, sha256)
    GROUP BY domain, source
    HAVING added + removed > 0
    ORDER BY domain, source
"""


@dataclass(frozen=True)
class DataState:
    """One state of the calibration data.

    Attributes:
        table: the table of documents.
        documents: manifest of the documents.
        calibration: manifest of the calibration set.
    """

    table: Path
    documents: dict[str, Any]
    calibration: dict[str, Any]


def load_state(documents: Path, calibration: Path) -> DataState:
    """Read a state from the folders of the documents and of the calibration set.

    Args:
        documents: folder of the table, which is verified against its manifest.
        calibration: folder of the calibration set, of which only the manifest is read.

    Raises:
        DamagedArtifactError: a file is missing or does not match the manifest.
    """
    manifest = verify_manifest(documents)
    if TABLE not in manifest["files"]:
        raise DamagedArtifactError(f"{documents} has no {TABLE}: run `dvc repro documents`")
    return DataState(documents / TABLE, manifest, read_json(calibration / MANIFEST))


def compare(before: DataState, after: DataState) -> dict[str, Any]:
    """Compare two states, by domain.

    Returns:
        ``domains``: for every changed domain, the documents ``added`` and ``removed``, the same by
        ``sources``, the ``tokens`` of the calibration set before and after, and ``licences``
        gained and lost; ``added`` and ``removed`` in total; ``licences`` over all domains;
        ``digests`` of documents and set, before and after; ``set_is_current``: whether the later
        set was built from the later documents.
    """
    sources = _changed_sources(before.table, after.table)
    domains: dict[str, Any] = {}
    for name in sorted({*before.documents["domains"], *after.documents["domains"]}):
        changed = sources.get(name, {})
        tokens = {"before": _tokens(before, name), "after": _tokens(after, name)}
        licences = _gained_and_lost(_licences(before, [name]), _licences(after, [name]))
        if changed or any(licences.values()) or tokens["before"] != tokens["after"]:
            domains[name] = {
                "added": sum(counts["added"] for counts in changed.values()),
                "removed": sum(counts["removed"] for counts in changed.values()),
                "sources": changed,
                "tokens": tokens,
                "licences": licences,
            }
    return {
        "added": sum(facts["added"] for facts in domains.values()),
        "removed": sum(facts["removed"] for facts in domains.values()),
        "domains": domains,
        "licences": _gained_and_lost(
            _licences(before, before.documents["domains"]),
            _licences(after, after.documents["domains"]),
        ),
        "digests": {
            "documents": {
                "before": before.documents["digest"],
                "after": after.documents["digest"],
            },
            "set": {"before": before.calibration["digest"], "after": after.calibration["digest"]},
        },
        "set_is_current": after.calibration.get("documents") == after.documents["digest"],
    }


def _changed_sources(before: Path, after: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Documents added and removed, by domain and source; unchanged sources are omitted."""
    with duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "threads": 2}) as connection:
        rows = connection.execute(_CHANGED_DOCUMENTS, [str(before), str(after)]).fetchall()
    changed: dict[str, dict[str, dict[str, int]]] = {}
    for domain, source, added, removed in rows:
        changed.setdefault(domain, {})[source] = {"added": added, "removed": removed}
    return changed


def _tokens(state: DataState, domain: str) -> int:
    facts = state.calibration.get("domains", {}).get(domain, {})
    return int(facts.get("calibration", {}).get("tokens", 0))


def _licences(state: DataState, domains: Iterable[str]) -> set[str]:
    known = state.documents["domains"]
    return {licence for name in domains if name in known for licence in known[name]["licences"]}


def _gained_and_lost(before: set[str], after: set[str]) -> dict[str, list[str]]:
    return {"gained": sorted(after - before), "lost": sorted(before - after)}
