"""What the report page and the data card say of the calibration data, ready to print."""

from collections import Counter
from typing import Any, NamedTuple

from pruneflow.report.number_format import MISSING, count, decimal, percent


class DomainRow(NamedTuple):
    """One domain: what was drawn of it, and how much of the calibration set it is."""

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


class RoundRow(NamedTuple):
    """How one round weighed each domain, and how many sequences of it were taken."""

    name: str
    cells: list[str]


def totals(documents: dict[str, Any], calibration: dict[str, Any]) -> dict[str, str]:
    """Return what the domains add up to, and the length of a sequence in tokens."""
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
    documents: dict[str, Any], calibration: dict[str, Any], held_out: dict[str, int]
) -> list[DomainRow]:
    """Return a row for each domain, in the order in which they were read.

    Args:
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        held_out: tokens that perplexity is measured on, by domain.
    """
    mixture, length = calibration["mixture"], calibration["sequence_length"]
    return [
        DomainRow(
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


def source_rows(documents: dict[str, Any]) -> list[SourceRow]:
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


def summed(documents: dict[str, Any], key: str) -> dict[str, int]:
    """Add up a count of every domain (`dropped`, `masked`), the largest first."""
    counts: Counter[str] = Counter()
    for domain in documents["domains"].values():
        counts.update(domain[key])
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def checked(validation: dict[str, Any]) -> dict[str, Any]:
    """Return what was checked: `success`, the two numbers, and the rows.

    Args:
        validation: the result of the stage validate (data/calibration/validation.json).
    """
    return {
        "success": validation["success"],
        "expectations": count(len(validation["expectations"])),
        "checks": count(len(validation["checks"])),
        "rows": [
            CheckRow(
                (item.get("expectation") or item["check"]).replace("_", " "),
                f"{item['over']}: {item['column']}" if item["column"] else item["over"],
                "; ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in observed),
            )
            for item in validation["expectations"] + validation["checks"]
            for observed in [item["observed"].items()]
        ],
    }


def weighed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the `domains` and the `rows` of the rounds that ran: "weight (sequences)" of each.

    Args:
        rounds: the round.json of every round, in order.
    """
    ran = [record for record in rounds if record.get("sequences")]
    domains = sorted({domain for record in ran for domain in record["sequences"]})
    rows = [
        RoundRow(
            record["round"],
            [
                f"{decimal(record['weights'].get(domain))} ({record['sequences'].get(domain, 0)})"
                for domain in domains
            ],
        )
        for record in ran
    ]
    return {"domains": domains, "rows": rows}


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
