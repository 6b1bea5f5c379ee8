"""Tables of the calibration data for the page and the data card, ready to print."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pruneflow.report.number_format import count

Manifest = Mapping[str, Any]
"""What a data stage wrote: manifest.json or validation.json."""


def totals(documents: Manifest, calibration: Manifest) -> dict[str, str]:
    """Return the sums over domains, and the length of a sequence in tokens."""
    domains = documents["domains"].values()
    return {
        "domains": count(len(domains)),
        "sources": count(sum(len(domain["sources"]) for domain in domains)),
        "documents": count(sum(domain["documents"] for domain in domains)),
        "characters": count(sum(domain["characters"] for domain in domains)),
        "sequences": count(sum(calibration["mixture"]["counts"].values())),
        "length": count(calibration["sequence_length"]),
    }


def summed(documents: Manifest, key: str) -> dict[str, int]:
    """Add up a count of every domain (`dropped`, `masked`), the largest first."""
    counts: Counter[str] = Counter()
    for domain in documents["domains"].values():
        counts.update(domain[key])
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_rows(validation: Manifest) -> list[tuple[str, str, str]]:
    """Return the name of each expectation or check, what it is about, and what it found.

    Args:
        validation: the result of the stage validate (data/calibration/validation.json).
    """
    return [
        (
            (item.get("expectation") or item["check"]).replace("_", " "),
            f"{item['over']}: {item['column']}" if item["column"] else item["over"],
            "; ".join(
                f"{name.replace('_', ' ')} {_shown(value)}"
                for name, value in item["observed"].items()
            ),
        )
        for item in validation["expectations"] + validation["checks"]
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return count(value) if isinstance(value, int) else str(value)
