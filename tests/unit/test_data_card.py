"""The data card shows sources, cleaning, checks and digests of the calibration data."""

import copy
import re
from typing import Any

import pytest
import yaml

from pruneflow.report.data_card import render_data_card
from tests.unit.data_example import CALIBRATION, DOCUMENTS, HELD_OUT, VALIDATION


def data_card(documents: dict[str, Any] = DOCUMENTS) -> tuple[dict[str, Any], str]:
    card = render_data_card(documents, CALIBRATION, HELD_OUT, VALIDATION)
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_data_card_has_hub_metadata():
    metadata, _ = data_card()
    assert metadata["license"] == "other"
    assert metadata["license_details"] == "CC-BY-SA-3.0, LicenseRef-ours"
    assert metadata["language"] == ["en"]
    assert metadata["size_categories"] == ["1K<n<10K"]
    documents = copy.deepcopy(DOCUMENTS)
    for domain in documents["domains"].values():
        domain.update(licences=["CC-BY-SA-3.0"], languages={"zh-Hans": 3, "fr": 5, "zxx": 9})
        domain["documents"] = 17
    metadata, _ = data_card(documents)
    assert metadata["license"] == "cc-by-sa-3.0"
    assert metadata["language"] == ["fr", "zh"]
    assert metadata["multilinguality"] == ["multilingual"]
    assert metadata["size_categories"] == ["n<1K"]


def test_data_card_shows_every_source_drop_mask_check_and_digest():
    _, body = data_card()
    plain = body.replace("\u202f", " ").replace("\u00a0", " ")
    for name, domain in DOCUMENTS["domains"].items():
        assert f"too short 12, near duplicate {domain['dropped']['near_duplicate']}" in plain
        for source in domain["sources"].values():
            assert re.search(rf"^\| {name} \|.* {source['licence']} \|", plain, re.MULTILINE)
    assert "| **all** | near duplicate 276, too short 96 | email 40, phone 16 |" in plain
    assert "| law | 690 | 817 345 | 1 664 | 13.4 % | 12.5 % | 3 072 |" in plain
    assert "All passed (expectations: 2, other checks: 1):" in plain
    assert "| no near duplicates | documents | rows at fault 0 |" in plain
    for digest in ("e" * 64, "f" * 64, "c" * 64, "9" * 40):
        assert f"`{digest}`" in plain
    tables = re.findall(r"(?:^\|.*\n)+", plain, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, "a cell breaks its row"


@pytest.mark.parametrize(
    ("choice", "words"),
    [("mask", "are masked"), ("drop", "were dropped"), ("keep", "not searched")],
)
def test_data_card_says_what_became_of_personal_data(choice, words):
    documents = {**DOCUMENTS, "settings": {**DOCUMENTS["settings"], "personal_data": choice}}
    _, body = data_card(documents)
    section = body.split("## Personal and sensitive information")[1].split("##")[0]
    assert words in section
