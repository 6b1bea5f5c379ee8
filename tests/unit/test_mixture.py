"""The mixture: shares rounded to sequences, and reweighed within the stored sequences."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.settings.calibration import MAX_SHARE_ERROR, CalibrationSettings
from pruneflow.tokens.mixture import Mixture, divide

amounts = st.lists(st.floats(0.5, 5), min_size=1, max_size=8)


def _shares(values):
    return {f"d{index}": value / sum(values) for index, value in enumerate(values)}


def _divided(sequences, shares):
    return Mixture.of(CalibrationSettings(sequences=sequences, weights=shares), list(shares))


@given(amounts, st.integers(80, 200))
def test_sequences_follow_the_shares_and_sum_exactly(values, sequences):
    shares = _shares(values)
    mixture = _divided(sequences, shares)
    assert sum(mixture.counts.values()) == sequences
    assert sum(mixture.measured.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert abs(mixture.counts[name] - sequences * share) < 1
        assert abs(mixture.measured[name] - share) <= MAX_SHARE_ERROR


def test_shares_are_equal_by_default():
    mixture = Mixture.of(CalibrationSettings(sequences=72), list("abcdefghijk"))
    assert mixture.shares == dict.fromkeys("abcdefghijk", 1 / 11)
    assert mixture.weights == dict.fromkeys("abcdefghijk", 1.0)
    assert sorted(mixture.counts.values()) == [6] * 5 + [7] * 6


def test_the_remainder_does_not_depend_on_the_order_of_domains():
    assert divide(8, {"c": 1.0, "b": 1.0, "a": 1.0}) == {"a": 3, "b": 3, "c": 2}


@given(st.lists(st.integers(1024, 100_000), min_size=1, max_size=6))
def test_tokens_are_rounded_to_sequences(tokens):
    asked = {f"d{index}": count for index, count in enumerate(tokens)}
    settings = CalibrationSettings(sequences=None, tokens=asked, sequence_length=16)
    mixture = Mixture.of(settings, list(asked))
    for name, count in asked.items():
        assert abs(mixture.counts[name] * 16 - count) <= 8
        assert mixture.shares[name] == pytest.approx(count / sum(tokens))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"sequences": 40, "weights": {"a": 0.995, "b": 0.005}},
            "domain b gets none of the 40 calibration sequences: raise calibration.sequences, or",
        ),
        (
            {"sequences": 3},
            r"domain a would be 66.7% of the 3 .* requested 50.0%: raise calibration.sequences",
        ),
        (
            {"sequences": None, "tokens": {"a": 8, "b": 11}, "sequence_length": 8},
            r"domain a would be 50.0% .* requested 42.1%: raise calibration.tokens or lower",
        ),
    ],
)
def test_a_share_that_rounding_changes_too_much_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        Mixture.of(CalibrationSettings(**values), ["a", "b"])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.data(),
)
def test_reweighing_keeps_the_total_and_takes_at_most_the_stored_sequences(counts, data):
    names = [f"d{index}" for index in range(len(counts))]
    shares = {name: count / sum(counts) for name, count in zip(names, counts, strict=True)}
    mixture = Mixture(shares, dict(zip(names, counts, strict=True)))
    held = {name: count + data.draw(st.integers(0, 40)) for name, count in mixture.counts.items()}
    weights = {name: data.draw(st.floats(0.01, 100)) for name in names}
    taken = mixture.reweighed(weights, held)
    assert list(taken) == names
    assert sum(taken.values()) == sum(counts)
    assert all(1 <= taken[name] <= held[name] for name in names)


@given(amounts, st.integers(80, 200), st.floats(0.1, 10))
def test_the_mixtures_own_weights_change_nothing(values, sequences, factor):
    shares = _shares(values)
    mixture = _divided(sequences, shares)
    weights = {name: factor * weight for name, weight in mixture.weights.items()}
    assert mixture.reweighed(weights, mixture.counts) == mixture.counts


def test_a_domain_that_weighs_twice_as_much_gets_twice_the_share():
    mixture = _divided(60, {"a": 0.5, "b": 0.25, "c": 0.25})
    weights = {**mixture.weights, "b": 2 * mixture.weights["b"]}
    held = {"a": 60, "b": 60, "c": 60}
    assert mixture.reweighed(weights, held) == {"a": 24, "b": 24, "c": 12}


def test_missing_sequences_go_to_the_other_domains_and_are_logged(caplog):
    mixture = _divided(60, {"a": 0.5, "b": 0.25, "c": 0.25})
    weights = {**mixture.weights, "b": 2 * mixture.weights["b"]}
    with caplog.at_level(logging.WARNING):
        taken = mixture.reweighed(weights, {"a": 60, "b": 18, "c": 60})
    assert taken == {"a": 28, "b": 18, "c": 14}
    assert "domain b should get 24 calibration sequences and only 18 are stored" in caplog.text
    caplog.clear()
    mixture.reweighed(weights, {"a": 60, "b": 24, "c": 60})
    assert not caplog.text


def test_weights_of_other_domains_are_refused():
    mixture = _divided(60, {"a": 0.5, "b": 0.5})
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}):
        with pytest.raises(InputError, match=r"same domains \([bc] is only in one of them\)"):
            mixture.reweighed(weights, {"a": 60, "b": 60})
