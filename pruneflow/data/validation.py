"""Validation of the table of documents, before any model runs.

Great Expectations checks columns (expectations.py); plain functions check what needs several rows
or another file (row_checks.py). Both name the failing rows.
"""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import verify_manifest, write_json
from pruneflow.data.documents import TABLE
from pruneflow.data.expectations import expect
from pruneflow.data.findings import raise_on_failure
from pruneflow.data.row_checks import run_checks
from pruneflow.errors import DamagedArtifactError
from pruneflow.settings.calibration import DocumentSettings


def validate_documents(
    documents_dir: Path, questions_dir: Path, settings: DocumentSettings, out_json: Path
) -> dict[str, Any]:
    """Validate the table of documents and write the result.

    Text is read in parts; only some bytes of hashes per document are kept in memory.

    Args:
        documents_dir: folder of the table.
        questions_dir: folder of the evaluation questions.
        settings: domains and limits.
        out_json: the result file, written only if validation succeeds.

    Returns:
        `{"success": true, "expectations": [...], "checks": [...], "documents": digest}`; an
        expectation is `{"expectation", "over", "column", "success", "observed"}`, a check has
        `check` in place of `expectation`.

    Raises:
        DamagedArtifactError: the table is missing or does not match its manifest.
        InputError: names the first failing expectation or check and its first rows.
    """
    manifest = verify_manifest(documents_dir)
    if TABLE not in manifest["files"] or "domains" not in manifest:
        raise DamagedArtifactError(
            f"{documents_dir} is not a table of documents (its manifest has no {TABLE}, or no "
            "domains): run the stage documents again"
        )
    table = documents_dir / TABLE
    expectations = expect(table, settings, manifest)
    raise_on_failure(expectations, table)
    checks = run_checks(table, settings, questions_dir)
    raise_on_failure(checks, table)
    result = {
        "success": True,
        "expectations": [finding.report("expectation") for finding in expectations],
        "checks": [finding.report("check") for finding in checks],
        "documents": manifest["digest"],
    }
    write_json(out_json, result)
    return result
