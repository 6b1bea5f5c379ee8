"""How far domains agree on which units matter, as tables."""

from statistics import mean
from typing import Any, NamedTuple

from pruneflow.report.number_format import MISSING, count, decimal


class AgreementRow(NamedTuple):
    """How one domain's ranking of units agrees with the others'."""

    name: str
    neurons: str  # mean correlation with the other domains
    heads: str
    kv_groups: str
    alone: str  # neurons that it alone needs


class Tables(NamedTuple):
    """The tables on the page.

    Attributes:
        rows: a row for each domain.
        names: the domains, in order.
        matrix: by domain, its correlation with each of `names`, of neurons.
    """

    rows: list[AgreementRow]
    names: list[str]
    matrix: list[tuple[str, list[str]]]


def tables(disagreement: dict[str, Any]) -> Tables:
    """Return the tables of a round's ``disagreement.json``, ready to print."""
    names, kinds = list(disagreement["domains"]), disagreement["kinds"]
    found = {kind: _pairs(kinds[kind]["correlations"]) for kind in kinds}
    alone = kinds["neurons"]["only_one_domain"]
    rows = [
        AgreementRow(
            name,
            **{
                kind: _mean([rho for pair, rho in found[kind].items() if name in pair])
                for kind in ("neurons", "heads", "kv_groups")
            },
            alone=count(alone[name]["units"]),
        )
        for name in names
    ]
    matrix = [
        (
            row,
            [
                MISSING if row == column else decimal(found["neurons"][frozenset((row, column))])
                for column in names
            ],
        )
        for row in names
    ]
    return Tables(rows, names, matrix)


def _pairs(correlations: list[dict[str, Any]]) -> dict[frozenset[str], float | None]:
    return {frozenset(pair["domains"]): pair["within_layers"] for pair in correlations}


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return decimal(mean(known)) if known else MISSING
