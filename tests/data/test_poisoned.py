"""A calibration set poisoned on purpose: each bad row is caught, and named by file and place."""

import json
import re
from collections import Counter
from typing import NamedTuple

import pytest

from pruneflow.data.document_table import DROPPED_COLUMNS
from pruneflow.errors import InputError

NEWS = "data/text/news.jsonl"
GOOD = [
    f"{town} council voted on {month} to {verb} the {place}. {name}, who has lived there for "
    f"{years} years, said that the {place} mattered to everyone in the street, old and young."
    for town, month, verb, place, name, years in zip(
        ["Leeds", "York", "Hull", "Derby", "Bath", "Ely", "Wells", "Truro", "Ripon", "Exeter"] * 4,
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"] * 6,
        ["repair", "sell", "close", "extend", "repaint", "insure", "move", "lease", "flood"] * 5,
        ["library", "bridge", "market hall", "swimming pool", "tram line", "mill", "theatre"] * 6,
        ["Mrs Hall", "Mr Osei", "Dr Lind", "Ms Patel", "Mr Byrne", "Mrs Okafor"] * 7,
        range(3, 43),
        strict=False,
    )
]
FRENCH = (
    "Le conseil municipal s'est réuni hier soir pour voter le budget de la ville, et les "
    "habitants ont posé beaucoup de questions sur les écoles et les transports du quartier."
)


class Poison(NamedTuple):
    """A line of the news file, why it must be dropped, and what the detail must say."""

    line: str
    reason: str
    detail: str


def poisons(question: str) -> list[Poison]:
    def text(value: str | None) -> str:
        return json.dumps({"text": value})

    overlap = f"The fair opened today. {question} and so on, said the mayor of the small town."
    return [
        Poison(text(GOOD[3]), "duplicate", "[0-9a-f]{64}"),
        Poison(text("  " + GOOD[4].upper()), "duplicate", "[0-9a-f]{64}"),
        Poison(text(GOOD[5] + " More follows."), "near_duplicate", "[0-9a-f]{64}"),
        Poison(text(overlap), "evaluation_overlap", "t-1: after the long winter the gardener"),
        Poison(text(""), "empty", "^$"),
        Poison(text(" \n\t "), "empty", "^$"),
        Poison(text(None), "empty", "^$"),
        Poison(text("PNG\x00\x00\x1a" * 40), "binary", "binary"),
        Poison(text("Short news."), "too_short", "11 characters"),
        Poison(text("buy it now " * 60), "repetitive", "compresses to 0.0"),
        Poison(text(FRENCH), "wrong_language", "fr"),
        Poison('{"text": "half a', "malformed", "JSON"),
        Poison("text, but not JSON", "malformed", "JSON"),
        Poison(json.dumps({"title": GOOD[0]}), "malformed", "no field text .*title"),
        Poison(json.dumps(12), "malformed", "."),
        Poison(text("long " * 300_000), "malformed", "longer than 1 MB"),
    ]


def test_every_poisoned_row_is_dropped_with_its_place_and_reason(workspace, question):
    workspace.domains_file.write_text(
        workspace.domains_file.read_text()
        + f"news:\n- {{kind: files, files: [{NEWS}], licence: MIT}}\n"
    )
    wanted = poisons(question)
    lines = [json.dumps({"text": text}) for text in GOOD]
    lines[-1:-1] = [poison.line for poison in wanted]  # good rows before and after
    (workspace.root / NEWS).write_text("\n".join(lines) + "\n")
    choice = {"domains": ["news", "letters"], "max_record_mb": 1}
    unreadable = len(GOOD) + [poison.reason for poison in wanted].index("binary")
    with pytest.raises(InputError, match=f"{NEWS}, line {unreadable} is binary"):
        workspace.build(**choice)
    manifest = workspace.build(**choice, malformed="skip")
    rows = workspace.dropped()
    assert [(row["place"], row["reason"]) for row in rows] == [
        (f"{NEWS}, line {number}", poison.reason)
        for number, poison in enumerate(wanted, start=len(GOOD))
    ]
    assert tuple(rows[0]) == DROPPED_COLUMNS
    for row, poison in zip(rows, wanted, strict=True):
        assert (row["domain"], row["source"]) == ("news", NEWS)
        assert re.search(poison.detail, row["detail"]), (row, poison.detail)
        assert len(row["excerpt"]) <= 80 and "\n" not in row["excerpt"]
        if poison.reason == "empty":
            assert row["sha256"] == row["excerpt"] == ""
        if poison.reason == "wrong_language":
            assert row["excerpt"] == FRENCH[:80]
    news, letters = (manifest["domains"][name] for name in ("news", "letters"))
    assert news["dropped"] == Counter(poison.reason for poison in wanted)
    assert letters["dropped"] == {}
    table = workspace.table()
    assert set(table[table["domain"] == "news"]["text"]) == set(GOOD)
    workspace.settings = workspace.settings.model_copy(update={"domains": ["news", "letters"]})
    assert workspace.validate()["success"]
