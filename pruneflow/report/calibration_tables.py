"""Tables of the calibration data for the page and the data card, ready to print."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pruneflow.models.round_record import RoundRecord
from pruneflow.report.number_format import MISSING, count, decimal, percent

Manifest = Mapping[str, Any]
"""What a data stage wrote: manifest.json or validation.json."""


class CalibrationDomainRow(NamedTuple):
    """One domain: its documents, and its share of the calibration set."""

    name: str
    documents: str
    characters: str
    tokens: str
    share: str
    asked: str
    held_out: str
    splits: str
    languages: str
    licences: str
    dropped: str
    masked: str


class SourceRow(NamedTuple):
    """One source of a domain."""

    domain: str
    name: str
    language: str
    licence: str
    documents: str
    characters: str


class CheckRow(NamedTuple):
    """One expectation or check of the validation."""

    name: str
    about: str
    found: str


class DomainWeightsRow(NamedTuple):
    """Weight of each domain in one round, and its calibration sequences."""

    name: str
    cells: list[str]


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


def domain_rows(
    documents: Manifest, calibration: Manifest, held_out: dict[str, int]
) -> list[CalibrationDomainRow]:
    """Return a row for each domain, in the order in which they were read.

    Args:
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        held_out: tokens that perplexity is measured on, by domain.
    """
    mixture, length = calibration["mixture"], calibration["sequence_length"]
    return [
        CalibrationDomainRow(
            name=name,
            documents=count(domain["documents"]),
            characters=count(domain["characters"]),
            # A domain that is measured may be one that is not calibrated on.
            tokens=count(length * mixture["counts"].get(name, 0)),
            share=percent(mixture["measured"].get(name)),
            asked=percent(mixture["shares"].get(name)),
            held_out=count(held_out[name]) if name in held_out else MISSING,
            splits=_listed(domain["splits"]),
            languages=_listed(domain["languages"]),
            licences=", ".join(domain["licences"]),
            dropped=_listed(domain["dropped"]),
            masked=_listed(domain["masked"]),
        )
        for name, domain in documents["domains"].items()
    ]


def source_rows(documents: Manifest) -> list[SourceRow]:
    """Return a row for each source, by domain."""
    return [
        SourceRow(
            domain=domain,
            name=name,
            language=source["language"],
            licence=source["licence"],
            documents=count(source["documents"]),
            characters=count(source["characters"]),
        )
        for domain, facts in documents["domains"].items()
        for name, source in facts["sources"].items()
    ]


def summed(documents: Manifest, key: str) -> dict[str, int]:
    """Add up a count of every domain (`dropped`, `masked`), the largest first."""
    counts: Counter[str] = Counter()
    for domain in documents["domains"].values():
        counts.update(domain[key])
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Checked(NamedTuple):
    """The result of the validation: whether all hold, how many of each, and the rows."""

    success: bool
    expectations: str
    checks: str
    rows: list[CheckRow]


def checked(validation: Manifest) -> Checked:
    """Return what was checked.

    Args:
        validation: the result of the stage validate (data/calibration/validation.json).
    """
    return Checked(
        success=validation["success"],
        expectations=count(len(validation["expectations"])),
        checks=count(len(validation["checks"])),
        rows=[
            CheckRow(
                (item.get("expectation") or item["check"]).replace("_", " "),
                f"{item['over']}: {item['column']}" if item["column"] else item["over"],
                "; ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in observed),
            )
            for item in validation["expectations"] + validation["checks"]
            for observed in [item["observed"].items()]
        ],
    )


class DomainWeights(NamedTuple):
    """The domains, and a row for each round that ran."""

    domains: list[str]
    rows: list[DomainWeightsRow]


def domain_weights(rounds: list[RoundRecord]) -> DomainWeights:
    """Return "weight (sequences)" of each domain in each round that ran.

    Args:
        rounds: the round.json of every round, in order.
    """
    ran = [record for record in rounds if record.sequences]
    domains = sorted({domain for record in ran for domain in record.sequences})
    rows = [
        DomainWeightsRow(
            record.round,
            [
                f"{decimal(record.weights.get(domain))} ({record.sequences.get(domain, 0)})"
                for domain in domains
            ],
        )
        for record in ran
    ]
    return DomainWeights(domains, rows)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return count(value) if isinstance(value, int) else str(value)


def _listed(counts: dict[str, int]) -> str:
    """Write counts by name as in ``en 640, fr 12``; nothing for counts of nothing."""
    return ", ".join(
        f"{name.replace('_', ' ')}\u00a0{count(number)}"
        for name, number in counts.items()
        if number
    )
