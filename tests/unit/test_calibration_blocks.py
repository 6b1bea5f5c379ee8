import hashlib
import itertools
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.artifacts import sha256_file, write_manifest
from pruneflow.calibration.blocks import (
    BLOCKS,
    CalibrationSet,
    build_blocks,
    pack,
    sequences_by_domain,
)
from pruneflow.config import CalibrationSettings, DocumentSettings
from pruneflow.errors import DamagedArtifactError, InputError

SEPARATOR = 0
DOMAINS = DocumentSettings(domains=["one", "two"])
SETTINGS = CalibrationSettings(
    sequences=6,
    sequence_length=8,
    validation_sequences=2,
    test_sequence_length=10,
    test_sequences=3,
)


class Tokenizer:
    """One token for each word, its number."""

    eos_token_id = SEPARATOR

    def __call__(self, texts, add_special_tokens, **_):
        assert add_special_tokens is False
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


@pytest.fixture
def documents(tmp_path) -> Path:
    """Documents of 5 to 24 tokens, no token twice."""
    folder = tmp_path / "documents"
    folder.mkdir()
    rows, token = [], 1
    for domain in DOMAINS.domains:
        for split, count in (("calibration", 20), ("validation", 6), ("test", 8)):
            for index in range(count):
                length = 5 + index % 20
                text = " ".join(str(number) for number in range(token, token + length))
                token += length
                sha256 = hashlib.sha256(text.encode()).hexdigest()
                rows.append({"domain": domain, "split": split, "sha256": sha256, "text": text})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "documents.parquet")
    write_manifest(folder)
    return folder


def build(documents: Path, **changes):
    settings = CalibrationSettings(**{**SETTINGS.model_dump(), **changes})
    folder = documents.parent
    return build_blocks(
        settings, DOMAINS, documents, Tokenizer(), "digest", folder / "set", folder / "held_out"
    )


@given(
    st.lists(st.lists(st.integers(1, 1000), max_size=30), max_size=12),
    st.integers(1, 16),
)
def test_packing_neither_loses_nor_invents_tokens(texts, length):
    blocks, owners = pack(texts, SEPARATOR, length)
    stream = [token for text in texts for token in (*text, SEPARATOR)][:-1]
    assert blocks.shape == (len(stream) // length, length)
    assert blocks.reshape(-1).tolist() == stream[: blocks.size]
    assert len(owners) == len(blocks)
    for block, of in zip(blocks.tolist(), owners, strict=True):
        allowed = {SEPARATOR} | {token for index in of for token in texts[index]}
        assert set(block) <= allowed


@given(
    st.lists(st.floats(0.5, 5), min_size=1, max_size=8),
    st.integers(80, 200),
)
def test_sequences_follow_the_weights_and_sum_exactly(weights, sequences):
    names = [f"d{index}" for index in range(len(weights))]
    settings = CalibrationSettings(
        sequences=sequences, weights=dict(zip(names, weights, strict=True))
    )
    counts = sequences_by_domain(settings, names)
    assert sum(counts.values()) == sequences
    for name, weight in zip(names, weights, strict=True):
        assert abs(counts[name] - sequences * weight / sum(weights)) < 1


def test_equal_weights_give_the_first_domains_what_is_left_over():
    settings = CalibrationSettings(sequences=8)
    assert sequences_by_domain(settings, ["a", "b", "c"]) == {"a": 3, "b": 3, "c": 2}


def test_a_domain_without_a_sequence_is_named():
    settings = CalibrationSettings(sequences=4, weights={"b": 0.01})
    with pytest.raises(InputError, match=r"domain b gets none of the 4.*calibration.weights.b"):
        sequences_by_domain(settings, ["a", "b"])


def test_blocks_hold_runs_of_documents_of_their_own_domain_and_split(documents):
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


def test_the_numbers_are_those_asked_for(documents):
    chosen, held_out = build(documents, weights={"two": 2.0})
    loaded = CalibrationSet.load(documents.parent / "set")
    assert loaded.blocks["calibration"]["one"].shape == (2, 8)
    assert loaded.blocks["calibration"]["two"].shape == (4, 8)
    assert loaded.blocks["validation"]["one"].shape == (2, 8)
    assert chosen["domains"]["two"]["calibration"]["tokens"] == 32
    assert chosen["tokenizer"] == held_out["tokenizer"] == "digest"
    assert chosen["documents"] == held_out["documents"]
    assert held_out["domains"]["one"]["test"]["sequences"] == 3
    assert held_out["sequence_length"] == 10


def test_the_same_seed_gives_the_same_bytes_and_another_seed_the_same_held_out(documents):
    digests = []
    for seed in (0, 0, 1):
        build(documents, seed=seed)
        folder = documents.parent
        digests.append([sha256_file(folder / name / BLOCKS) for name in ("set", "held_out")])
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] == digests[2][1]


def test_held_out_manifest_does_not_depend_on_the_seed(documents):
    assert build(documents, seed=0)[1] == build(documents, seed=5)[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sequences": 400}, r"domain one has 38 calibration sequences of 8 tokens, 200 are asked"),
        ({"validation_sequences": 99}, "lower calibration.validation_sequences, or add sources to"),
        ({"test_sequences": 99}, "lower calibration.test_sequences"),
    ],
)
def test_too_few_tokens_are_refused_and_earlier_sets_stay(documents, changes, words):
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
