"""A round.json next to a model that a test made, as the stages write it."""

from pathlib import Path
from typing import Any

from pruneflow.models.digests import model_digest
from pruneflow.models.round_record import RoundRecord, write_round_record


def record_as_done(directory: Path, name: str = "dense", **changes: Any) -> RoundRecord:
    """Record a model directory as a round that is done and delivered."""
    digest = model_digest(directory)
    record = RoundRecord(
        round=name,
        status="done",
        digest=digest,
        delivered=name,
        delivered_digest=digest,
        dense={"digest": digest, "block_weights": 1, "neurons": 1},
    ).model_copy(update=changes)
    write_round_record(directory, record)
    return record
