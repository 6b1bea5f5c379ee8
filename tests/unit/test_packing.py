"""Packing keeps every token, whatever the batches, and samples blocks reproducibly."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.tokens.packing import Packer

SEPARATOR = 0
EVERYTHING = 10_000

documents = st.lists(st.lists(st.integers(1, 1000), max_size=30), max_size=12)


def _packed(texts, length, most=EVERYTHING, key="key", at_once=5, beginning=()):
    packer = Packer(length, [*beginning], SEPARATOR, most, key)
    for start in range(0, len(texts), at_once):
        packer.add(texts[start : start + at_once])
    return packer.sampled()


def _stream(texts):
    return [token for text in texts for token in (*text, SEPARATOR)][:-1]


@given(documents, st.integers(1, 16), st.integers(1, 12))
def test_packing_neither_loses_nor_invents_tokens(texts, length, at_once):
    drawn = _packed(texts, length, at_once=at_once)
    stream = _stream(texts)
    whole = [tuple(stream[at : at + length]) for at in range(0, len(stream), length)]
    whole = [block for block in whole if len(block) == length]
    assert drawn.available == len(whole)
    assert drawn.blocks.shape == (len(whole), length)
    assert sorted(map(tuple, drawn.blocks.tolist())) == sorted(whole)
    for block, of in zip(drawn.blocks.tolist(), drawn.documents, strict=True):
        allowed = {SEPARATOR} | {token for index in of for token in texts[index]}
        assert set(block) <= allowed


@given(documents, st.integers(1, 16), st.lists(st.integers(1, 3), max_size=3))
def test_a_beginning_is_put_before_the_blocks_of_shorter_ones(texts, length, beginning):
    plain = _packed(texts, length)
    begun = _packed(texts, length + len(beginning), beginning=beginning)
    assert begun.blocks.tolist() == [[*beginning, *block] for block in plain.blocks.tolist()]
    assert (begun.documents, begun.available) == (plain.documents, plain.available)


def test_a_block_names_the_documents_that_have_tokens_in_it():
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]  # 1 2 3 | 0 4 0 | 5 6 7 | 8 9
    drawn = _packed(texts, 3)
    of = {tuple(block): list(of) for block, of in zip(drawn.blocks, drawn.documents, strict=True)}
    assert of == {(1, 2, 3): [0], (0, 4, 0): [0, 1], (5, 6, 7): [2]}


@given(documents, st.integers(1, 8), st.integers(1, 12), st.integers(1, 20))
def test_batches_do_not_change_the_result(texts, length, at_once, most):
    one = _packed(texts, length, most)
    other = _packed(texts, length, most, at_once=at_once)
    assert one.blocks.tolist() == other.blocks.tolist()
    assert one.documents == other.documents


@pytest.mark.parametrize("most", [1, 7, 49])
def test_a_smaller_sample_is_a_prefix_of_a_larger_one(most):
    texts = [list(range(start, start + 9)) for start in range(1, 500, 9)]
    few, many = _packed(texts, 10, most), _packed(texts, 10)
    assert few.available == many.available == 55
    assert few.blocks.tolist() == many.blocks.tolist()[:most]
    assert few.documents == many.documents[:most]


def test_blocks_are_sampled_from_the_entire_stream_and_depend_on_the_key():
    texts = [list(range(1, 4001))]
    ours, others = (_packed(texts, 4, 40, key) for key in ("one", "two"))
    assert ours.blocks.tolist() != others.blocks.tolist()
    for drawn in (ours, others):
        starts = sorted(block[0] for block in drawn.blocks.tolist())
        assert starts[0] < 1000 and starts[-1] > 3000
        assert max(right - left for left, right in itertools.pairwise(starts)) < 1000


def test_no_documents_give_no_blocks():
    drawn = _packed([], 4)
    assert drawn.blocks.shape == (0, 4)
    assert (drawn.available, drawn.documents) == (0, [])
