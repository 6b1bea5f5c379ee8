import hashlib
import itertools
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from pruneflow.artifacts import sha256_file, write_manifest
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.settings.calibration import CalibrationSettings
from pruneflow.settings.recovery import RecoverySettings
from pruneflow.tokens.calibration_set import BLOCKS, CalibrationSet, build_blocks

SEPARATOR = 0
DOMAINS = ["one", "two"]
SETTINGS = CalibrationSettings(
    sequences=6,
    sequence_length=8,
    validation_sequences=2,
    test_sequence_length=10,
    test_sequences=3,
)


class Tokenizer:
    """One token for each word, its number; `before` and `after` are special tokens."""

    eos_token_id = SEPARATOR
    bos_token_id = None
    before, after = [], []

    def __call__(self, texts, add_special_tokens, **_):
        ids = [[int(word) for word in text.split()] for text in texts]
        if add_special_tokens:
            ids = [[*self.before, *each, *self.after] for each in ids]
        return {"input_ids": ids}


BOS = 99_999


@pytest.fixture
def documents(tmp_path) -> Path:
    """Documents of 5 to 24 tokens, no token twice."""
    folder = tmp_path / "documents"
    folder.mkdir()
    rows, token = [], 1
    for domain in DOMAINS:
        for split, count in (("calibration", 20), ("validation", 6), ("test", 8)):
            for index in range(count):
                length = 5 + index % 20
                text = " ".join(str(number) for number in range(token, token + length))
                token += length
                sha256 = hashlib.sha256(text.encode()).hexdigest()
                rows.append({"domain": domain, "split": split, "sha256": sha256, "text": text})
    rows.sort(key=lambda row: (row["domain"], row["sha256"]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "documents.parquet")
    write_manifest(folder)
    return folder


def build(documents: Path, recovery=None, longest=None, **changes):
    settings = CalibrationSettings(**{**SETTINGS.model_dump(), **changes})
    folder = documents.parent
    return build_blocks(
        settings,
        DOMAINS,
        documents,
        Tokenizer(),
        "digest",
        folder / "set",
        folder / "held_out",
        recovery,
        longest,
    )


def test_blocks_contain_text_of_their_own_domain_and_split(documents):
    build(documents)
    rows = pyarrow.parquet.read_table(documents / "documents.parquet").to_pylist()
    owner = {
        int(token): (row["split"], row["domain"]) for row in rows for token in row["text"].split()
    }
    chosen = CalibrationSet.load(documents.parent / "set")
    held_out = CalibrationSet.load(documents.parent / "held_out")
    assert set(chosen.blocks) == {"calibration", "validation"}
    assert set(held_out.blocks) == {"test"}
    for split, domains in {**chosen.blocks, **held_out.blocks}.items():
        for domain, blocks in domains.items():
            assert blocks.dtype == torch.int64
            for block in blocks.tolist():
                assert {owner[token] for token in block if token != SEPARATOR} == {(split, domain)}
                for left, right in itertools.pairwise(block):
                    assert SEPARATOR in (left, right) or right == left + 1


def test_numbers_of_sequences_follow_the_settings(documents):
    chosen, held_out = build(documents, weights={"one": 1 / 3, "two": 2 / 3})
    loaded = CalibrationSet.load(documents.parent / "set")
    taken = loaded.take()
    assert taken["one"].shape == (2, 8)
    assert taken["two"].shape == (4, 8)
    assert loaded.blocks["validation"]["one"].shape == (2, 8)
    assert chosen["domains"]["two"]["calibration"]["tokens"] == 32
    assert chosen["domains"]["two"]["calibration"]["held"] == 8
    assert chosen["tokenizer"] == held_out["tokenizer"] == "digest"
    assert chosen["documents"] == held_out["documents"]
    assert held_out["domains"]["one"]["test"]["sequences"] == 3
    assert held_out["sequence_length"] == 10
    assert chosen["mixture"]["counts"] == {"one": 2, "two": 4}
    assert chosen["mixture"]["measured"] == pytest.approx(chosen["mixture"]["shares"])
    assert "mixture" not in held_out


def test_test_windows_do_not_depend_on_the_calibration_domains(documents):
    build(documents)
    all_held_out = CalibrationSet.load(documents.parent / "held_out")
    chosen, _ = build(documents, domains=["two"])
    loaded = CalibrationSet.load(documents.parent / "set")
    held_out = CalibrationSet.load(documents.parent / "held_out")
    assert {split: set(found) for split, found in loaded.blocks.items()} == {
        "calibration": {"two"},
        "validation": {"two"},
    }
    assert loaded.take()["two"].shape == (6, 8)
    assert chosen["mixture"]["counts"] == {"two": 6}
    assert held_out.digest == all_held_out.digest


def test_tokens_set_the_size_of_each_domain(documents):
    chosen, _ = build(documents, sequences=None, tokens={"one": 48, "two": 80})
    assert chosen["mixture"]["counts"] == {"one": 6, "two": 10}
    assert chosen["mixture"]["measured"] == {"one": 0.375, "two": 0.625}


def test_a_round_takes_the_first_blocks_and_feedback_takes_more_of_the_reserve(documents):
    build(documents, reserve=2.5)
    wide = CalibrationSet.load(documents.parent / "set")
    held = wide.blocks["calibration"]
    assert {domain: len(rows) for domain, rows in held.items()} == {"one": 8, "two": 8}
    assert {domain: len(rows) for domain, rows in wide.take().items()} == {"one": 3, "two": 3}
    more = wide.take({"one": 1.0, "two": 2.0})
    assert {domain: len(rows) for domain, rows in more.items()} == {"one": 2, "two": 4}
    for domain, rows in more.items():
        assert torch.equal(rows, held[domain][: len(rows)])
    build(documents, reserve=1)
    narrow = CalibrationSet.load(documents.parent / "set")
    for domain, rows in wide.take().items():
        assert torch.equal(rows, narrow.blocks["calibration"][domain])


def test_a_reserve_is_limited_by_the_available_text(documents):
    chosen, _ = build(documents, sequences=50, reserve=16)
    counts = chosen["domains"]["one"]["calibration"]
    assert (counts["sequences"], counts["held"]) == (25, counts["available"])


def test_the_digest_covers_the_mixture(documents):
    one, _ = build(documents, sequences=6, reserve=2)
    other, _ = build(documents, sequences=12, reserve=1)
    blocks = CalibrationSet.load(documents.parent / "set").blocks["calibration"]
    assert len(blocks["one"]) == one["domains"]["one"]["calibration"]["held"] == 6
    assert one["digest"] != other["digest"]


def test_recovery_blocks_are_limited_by_the_token_budget(documents):
    recovery = RecoverySettings(token_budget=64, sequence_length=16, batch_sequences=2)
    chosen, _ = build(documents, recovery)
    assert chosen["domains"]["one"]["recovery"]["sequences"] == 4
    everything = RecoverySettings(token_budget=10**6, sequence_length=16)
    chosen, _ = build(documents, everything)
    counts = chosen["domains"]["one"]["recovery"]
    assert counts["sequences"] == counts["available"] == 19


def test_the_seed_determines_the_set_but_not_the_held_out_set(documents):
    digests = []
    for seed in (0, 0, 1):
        _, held_out = build(documents, seed=seed)
        digests.append((sha256_file(documents.parent / "set" / BLOCKS), held_out))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] == digests[2][1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sequences": 400},
            r"domain one has 38 calibration sequences of 8 tokens, and 200 are needed",
        ),
        ({"validation_sequences": 99}, "lower calibration.validation_sequences, or add sources to"),
        ({"test_sequences": 99}, "lower calibration.test_sequences"),
    ],
)
def test_too_few_tokens_are_refused_and_earlier_sets_are_kept(documents, changes, words):
    build(documents)
    before = [sha256_file(documents.parent / name / BLOCKS) for name in ("set", "held_out")]
    with pytest.raises(InputError, match=words):
        build(documents, **changes)
    after = [sha256_file(documents.parent / name / BLOCKS) for name in ("set", "held_out")]
    assert before == after


def test_a_tokenizer_without_an_end_token_is_refused(documents, monkeypatch):
    monkeypatch.setattr(Tokenizer, "eos_token_id", None)
    with pytest.raises(InputError, match="end-of-text"):
        build(documents)


@pytest.mark.parametrize(
    ("before", "add_bos_token", "beginning"),
    [
        ([BOS], "auto", [BOS]),
        ([BOS], False, []),
        ([], "auto", []),
        ([], True, [BOS]),
        ([BOS, BOS - 1], "auto", [BOS, BOS - 1]),
    ],
)
def test_every_block_begins_as_the_tokenizer_begins_a_text(
    documents, monkeypatch, before, add_bos_token, beginning
):
    for name, value in (("bos_token_id", BOS), ("before", before), ("after", [SEPARATOR])):
        monkeypatch.setattr(Tokenizer, name, value)
    recovery = RecoverySettings(token_budget=24, sequence_length=8)
    build(documents, recovery, add_bos_token=add_bos_token)
    sets = [CalibrationSet.load(documents.parent / name) for name in ("set", "held_out")]
    sets.append(
        CalibrationSet.from_texts(TEXTS, Tokenizer(), sequences=12, add_bos_token=add_bos_token)
    )
    assert {split for each in sets for split in each.blocks} == {
        "calibration",
        "validation",
        "recovery",
        "test",
    }
    for each in sets:
        assert each.manifest["beginning"] == beginning
        for split, domains in each.blocks.items():
            length = {"test": 10}.get(split, 128 if each is sets[2] else 8)
            for rows in domains.values():
                assert rows.shape[1] == length
                assert (rows[:, : len(beginning)] == torch.tensor(beginning)).all()
                assert not (rows[:, len(beginning) :] >= BOS - 1).any()


def test_a_beginning_token_that_the_tokenizer_does_not_have_is_refused(documents):
    with pytest.raises(InputError, match=r"add_bos_token is true, but .* no bos_token"):
        build(documents, add_bos_token=True)


def test_another_tokenizer_or_a_damaged_file_is_refused(documents):
    build(documents)
    folder = documents.parent / "set"
    assert CalibrationSet.load(folder, "digest").manifest["seed"] == 0
    with pytest.raises(InputError, match="another tokenizer"):
        CalibrationSet.load(folder, "other")
    path = folder / BLOCKS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifactError):
        CalibrationSet.load(folder)


def test_sequences_longer_than_the_model_supports_are_refused(documents):
    build(documents, longest=10)
    with pytest.raises(InputError, match=r"calibration.sequence_length is 12.* up to 10 tokens"):
        build(documents, longest=10, sequence_length=12)
    with pytest.raises(InputError, match=r"recovery.sequence_length is 256"):
        build(documents, RecoverySettings(token_budget=9000), longest=128)


TEXTS = {
    domain: [
        " ".join(str(number) for number in range(start, start + 20))
        for start in range(first, first + 4000, 20)
    ]
    for domain, first in (("one", 1), ("two", 10_001), ("three", 20_001))
}


def test_a_set_from_texts_has_shares_and_a_reserve():
    shares = {"one": 0.5, "two": 0.3, "three": 0.2}
    chosen = CalibrationSet.from_texts(
        TEXTS, Tokenizer(), sequences=50, sequence_length=16, weights=shares, reserve=1.5
    )
    assert {name: len(rows) for name, rows in chosen.take().items()} == {
        "one": 25,
        "two": 15,
        "three": 10,
    }
    assert len(chosen.blocks["calibration"]["one"]) == 38
    assert len(chosen.blocks["validation"]["one"]) == 5
    known = {
        split: {int(token) for rows in domains.values() for token in rows.unique()} - {SEPARATOR}
        for split, domains in chosen.blocks.items()
    }
    assert not known["calibration"] & known["validation"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "document 2 of one is of type NoneType: give a string"),
        (b"1 2", "document 2 of one is of type bytes"),
        ("1 \ud800", r"document 2 of one is not valid Unicode \(a lone surrogate at character 3\)"),
    ],
)
def test_documents_that_are_no_text_are_refused(text, words):
    texts = {**TEXTS, "one": [TEXTS["one"][0], text, *TEXTS["one"][1:]]}
    with pytest.raises(InputError, match=words):
        CalibrationSet.from_texts(texts, Tokenizer())


def test_a_set_from_texts_has_equal_domains_and_a_digest_of_its_text():
    def made(texts, **changes):
        return CalibrationSet.from_texts(
            texts, Tokenizer(), **{"sequences": 10, "sequence_length": 16, **changes}
        )

    chosen = made(TEXTS)
    assert {len(rows) for rows in chosen.take().values()} == {4}
    assert chosen.digest == made(TEXTS).digest
    others = {**TEXTS, "one": [text + " 7" for text in TEXTS["one"]]}
    digests = [chosen.digest, made(others).digest, made(TEXTS, seed=1).digest]
    digests.append(made(TEXTS, reserve=3).digest)
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"one": 0.5, "two": 0.3, "three": 0.1}}, "weights add up to 0.9"),
        ({"weights": {"one": 0.5, "two": 0.5}}, "has no entry for three"),
        ({"weights": {"one": 0.4, "two": 0.4, "three": 0.1, "four": 0.1}}, "names four"),
        (
            {"weights": {"one": 0.5, "two": 0.26, "three": 0.24}, "sequences": 5},
            "instead of the requested",
        ),
        ({"reserve": 0.5}, "reserve is 0.5"),
    ],
)
def test_impossible_shares_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        CalibrationSet.from_texts(TEXTS, Tokenizer(), sequence_length=16, **changes)
