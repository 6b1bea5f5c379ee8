"""The model card: a README.md as the Hugging Face hub reads it."""

from typing import Any

import yaml

from pruneflow.reporting.comparison import comparison
from pruneflow.reporting.details import task_rows
from pruneflow.reporting.summary import verdict
from pruneflow.reporting.templates import render


def render_card(summary: dict[str, Any]) -> str:
    """Return the model card: hub metadata, how to load, what was measured, limits.

    The licence is the dense model's, which the pipeline does not know, so none is stated.
    """
    model = summary["model"]
    # Only a hub id comes with a revision; everything else has just a name.
    base = model["source"] if model["revision"] else model["name"]
    header = {
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "structured-pruning", "pruneflow"],
    }
    return render(
        "model_card.md.jinja",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        summary=summary,
        verdict=verdict(summary),
        sections=comparison(summary),
        accuracy=task_rows(summary),
    )
