"""Whether the table of documents may be used: no model runs on a table that fails here.

Great Expectations checks what can be said of columns (expectations.py); plain functions check what
needs two rows or another file (checks.py). Both name the rows at fault.
"""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import verify_manifest, write_json
from pruneflow.data.documents import TABLE
from pruneflow.data.expectations import expect
from pruneflow.data.findings import refuse_failure
from pruneflow.data.row_checks import run_checks
from pruneflow.errors import DamagedArtifactError
from pruneflow.settings.calibration import DocumentSettings


def validate_documents(
    documents_dir: Path, questions_dir: Path, settings: DocumentSettings, out_json: Path
) -> dict[str, Any]:
    """Check the table of documents and write the result.

    Memory grows by some bytes a document, for hashes; text is looked at a part at a time.

    Args:
        documents_dir: folder of the table.
        questions_dir: folder of the evaluation questions.
        settings: the domains and limits that the table must keep to.
        out_json: where the result goes; written only when everything holds.

    Returns:
        `{"success": true, "expectations": [...], "checks": [...], "documents": digest}`; an
        expectation is `{"expectation", "over", "column", "success", "observed"}`, a check has
        `check` in place of `expectation`.

    Raises:
        DamagedArtifactError: the table is missing or not its manifest's.
        InputError: names the first expectation or check that fails and its first rows.
    """
    manifest = verify_manifest(documents_dir)
    if TABLE not in manifest["files"] or "domains" not in manifest:
        raise DamagedArtifactError(
            f"{documents_dir} is no table of documents (its manifest has no {TABLE}, or no "
            "domains): run the stage documents again"
        )
    table = documents_dir / TABLE
    expectations = expect(table, settings, manifest)
    refuse_failure(expectations, table)
    checks = run_checks(table, settings, questions_dir)
    refuse_failure(checks, table)
    result = {
        "success": True,
        "expectations": [finding.report("expectation") for finding in expectations],
        "checks": [finding.report("check") for finding in checks],
        "documents": manifest["digest"],
    }
    write_json(out_json, result)
    return result
