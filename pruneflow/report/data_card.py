"""The data card: the calibration data described as the Hugging Face hub describes datasets."""

from typing import Any

import yaml

from pruneflow.report.calibration_tables import Manifest, check_rows, summed, totals
from pruneflow.report.rendering import render

_SIZES = [(1000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M")]


def render_data_card(
    documents: Manifest,
    calibration: Manifest,
    held_out: Manifest,
    validation: Manifest,
) -> str:
    """Return the data card in Markdown: hub metadata, domains, sources, cleaning, checks.

    Args:
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        held_out: manifest of the held-out set.
        validation: what was checked of the table (data/calibration/validation.json).
    """
    return render(
        "data_card.md.jinja",
        header=yaml.safe_dump(_header(documents), sort_keys=False, allow_unicode=True).strip(),
        documents=documents,
        calibration=calibration,
        held_out={name: facts["test"]["tokens"] for name, facts in held_out["domains"].items()},
        validation=validation,
        totals=totals(documents, calibration),
        dropped=summed(documents, "dropped"),
        masked=summed(documents, "masked"),
        checks=check_rows(validation),
        digests={
            "documents": documents["digest"],
            "calibration set": calibration["digest"],
            "held-out set": held_out["digest"],
        },
    )


def _header(documents: Manifest) -> dict[str, Any]:
    domains = documents["domains"].values()
    licences = sorted({licence for domain in domains for licence in domain["licences"]})
    tags = {tag.split("-")[0].lower() for domain in domains for tag in domain["languages"]}
    languages = sorted(tags - {"zxx"})  # source code, which is in no language of the hub
    # The hub knows one licence by its lower-case SPDX identifier, and none for a mixture.
    one = len(licences) == 1 and not licences[0].startswith("LicenseRef-")
    licence = {"license": licences[0].lower()} if one else {"license": "other"}
    return {
        "pretty_name": "Calibration data for structured pruning",
        **licence,
        "license_details": ", ".join(licences),
        "language": languages,
        "multilinguality": ["multilingual" if len(languages) > 1 else "monolingual"],
        "task_categories": ["text-generation"],
        "size_categories": [_size(sum(domain["documents"] for domain in domains))],
        "tags": ["calibration", "pruning", "pruneflow"],
    }


def _size(documents: int) -> str:
    """Return the hub's name for a number of rows, as in ``1K<n<10K``."""
    lower = ""
    for limit, name in _SIZES:
        if documents < limit:
            return f"{lower}<n<{name}" if lower else f"n<{name}"
        lower = name
    return f"n>{lower}"
