"""How a run of the pipeline ended."""

from dataclasses import asdict, dataclass
from typing import Any

from pruneflow.judge.summary import Summary

REFUSED = "Refused"
"""Name of the state of a run whose model the gates did not accept."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: whether the gates accepted the model, and what was done with it.

    Attributes:
        accepted: by the gates.
        reasons: why not; empty when they did.
        summary: what was measured.
        run_id: MLflow's run.
        version: of the registered model; None when it was refused.
        in_production: whether that version is in production now.
        new: whether this run made the version or put it into production.
        not_pushed: why an accepted run could not be pushed to DVC's remote; None when it could.
    """

    accepted: bool
    reasons: list[str]
    summary: Summary
    run_id: str
    version: str | None = None
    in_production: bool = False
    new: bool = False
    not_pushed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values."""
        return {**asdict(self), "summary": self.summary.to_json()}
