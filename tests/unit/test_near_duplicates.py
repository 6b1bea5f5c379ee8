import random
import tempfile

import numpy
import pytest

from pruneflow.data.near_duplicates import PERMUTATIONS, RECALL, Signatures, banding, signature
from pruneflow.data.word_hashes import hash_words, ngram_hashes

WORDS = [f"word{number}" for number in range(500)]


def text(seed: int, count: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def changed(original: list[str], positions: int) -> list[str]:
    copy = list(original)
    step = len(copy) // (positions + 1)
    for position in range(step, step * positions + 1, step):
        copy[position] = f"other{position}"
    return copy


def jaccard(first: list[str], second: list[str]) -> float:
    one, two = (set(zip(*(found[i:] for i in range(5)), strict=False)) for found in (first, second))
    return len(one & two) / len(one | two)


def near(texts: list[str], similarity: float = 0.8, **options) -> list[list[int]]:
    with tempfile.TemporaryFile() as file:
        signatures = Signatures(file)
        for one in texts:
            signatures.add(hash_words(one).hashes)
        return signatures.near_duplicates(similarity, **options).tolist()


def test_the_estimate_is_close_to_the_jaccard_similarity():
    errors = []
    for seed in range(40):
        first = text(seed)
        second = changed(first, seed % 20)
        one, two = (signature(hash_words(" ".join(found)).hashes) for found in (first, second))
        shares = one == two
        errors.append(shares.mean() - jaccard(first, second))
    assert abs(numpy.mean(errors)) < 0.03
    assert numpy.abs(errors).max() < 0.25


def test_near_duplicates_name_the_first_and_others_stay():
    base = text(1)
    texts = [text(2), base, text(3), changed(base, 1), changed(base, 20), base[:-2]]
    assert near([" ".join(one) for one in texts]) == [[3, 1], [5, 1]]


def test_texts_below_the_similarity_are_kept():
    base = text(5)
    assert jaccard(base, changed(base, 12)) < 0.6
    assert near([" ".join(base), " ".join(changed(base, 12))]) == []


def test_no_subset_of_the_remaining_texts_has_near_duplicates():
    generator = random.Random(0)
    texts = []
    for seed in range(60):
        chain = text(seed)
        for _ in range(5):
            texts.append(" ".join(chain))
            chain = changed(chain, generator.randint(1, 6))
    dropped = {later for later, _ in near(texts)}
    left = [one for number, one in enumerate(texts) if number not in dropped]
    assert 60 <= len(left) < len(texts)
    for part in (left, left[::-1], left[::2], generator.sample(left, len(left) // 2)):
        assert near(part) == []


def test_excluded_texts_are_ignored():
    same = " ".join(text(1))
    assert near([same, same, same]) == [[1, 0], [2, 0]]
    assert near([same, same, same], exclude=numpy.array([0])) == [[2, 1]]


def test_chinese_is_compared_by_characters():
    story = (
        "港口那天早上很安静桥上没有人注意到太阳升起之前随着潮水进来的那条小船直到有人大声喊叫" * 2
    )
    other = (
        "昨天下午老师在图书馆里给学生们讲了一个关于古代诗人的长故事大家都听得非常认真没有说话" * 2
    )
    assert near([story, other, story.replace("早上", "晚上", 1)]) == [[2, 0]]


def test_empty_and_short_texts_are_supported():
    assert near([]) == []
    assert near(["one"]) == []
    assert near(["one two", "two one", "one two"]) == [[2, 0]]


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
def test_texts_share_a_band_at_the_similarity_and_rarely_far_below(similarity):
    bands, rows = banding(similarity)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - similarity**rows) ** bands >= RECALL
    assert 1 - (1 - (similarity / 2) ** rows) ** bands < 0.9


def test_ngram_hashes_depend_on_the_words_and_their_order():
    hashes = hash_words("one two three one two four").hashes
    pairs = ngram_hashes(hashes, 2)
    assert len(pairs) == 5
    assert pairs[0] == pairs[3]
    assert len(set(pairs.tolist())) == 4
    assert len(ngram_hashes(hashes, 7)) == 0


def test_signatures_are_the_same_in_every_process():
    found = signature(hash_words("The same words, in every process!").hashes)
    assert found[:4].tolist() == [3651556331, 2996786431, 3879772747, 438739717]


def test_words_of_unspaced_scripts_are_characters():
    assert hash_words("Hello, WORLD! it's 3.5").words == ["hello", "world", "it", "s", "3", "5"]
    assert hash_words("用iPhone拍照。").words == ["用", "iphone", "拍", "照"]
    assert hash_words("안녕 세계").words == ["안녕", "세계"]
