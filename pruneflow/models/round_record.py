"""round.json, the record beside every model directory of the pipeline.

It says what the directory is (the dense model, or a round: done, unhealthy or skipped), which
round the descent delivers so far, and the digest that a reader checks.
"""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError

RECORD = "round.json"
_REQUIRED = ("round", "status", "delivered", "delivered_digest", "dense")


def write_record(directory: Path, **facts: Any) -> dict[str, Any]:
    """Write ``round.json``; the facts must say at least what every reader needs."""
    missing = [key for key in _REQUIRED if key not in facts]
    if missing:
        raise ValueError(f"a record needs {missing[0]}")
    write_json(directory / RECORD, facts)
    return facts


def read_record(directory: Path) -> dict[str, Any]:
    """Read ``round.json``.

    Raises:
        DamagedArtifactError: it is missing, or is not a record of this pipeline.
    """
    record = read_json(directory / RECORD)
    if not isinstance(record, dict) or any(key not in record for key in _REQUIRED):
        raise DamagedArtifactError(
            f"{directory / RECORD} is not a record of this pipeline: delete {directory} "
            "and run `dvc repro`"
        )
    return record
