"""Gates against the model in production: better, or no worse and smaller."""

import json

import pytest

from pruneflow.errors import InputError
from pruneflow.judge.compare import Comparison
from pruneflow.judge.gates import JudgedAgainst, Production, decide, load_gates
from tests.unit.evaluation_example import PERPLEXITY, about, gates, summary

SUMMARY = summary()


def against_production(metric: str, comparison: str, limit: float):
    return gates(metric, comparison, limit, against="production")


def compared(**changes):
    """What `compare` says of production and a candidate that is smaller and no better."""
    known = {name: getattr(SUMMARY, name) for name in Comparison.model_fields}
    return Comparison.model_validate({**known, **changes})


BETTER, WITHIN, WORSE = about(0.9, 0.85, 0.95), about(1.0, 0.95, 1.05), about(1.1, 0.9, 1.2)
SMALLER = {"dense": 100, "pruned": 99, "ratio": 0.99}
AS_LARGE = {"dense": 100, "pruned": 100, "ratio": 1}


@pytest.mark.parametrize(
    ("ratio", "size", "passes", "words"),
    [
        (BETTER, AS_LARGE, True, None),
        (WITHIN, SMALLER, True, None),
        (WITHIN, AS_LARGE, False, "not better than 1, and the model is no smaller"),
        (WORSE, SMALLER, False, "not better than 1, and worse than the limit 1.05"),
        (about(1.0, 1.0, 1.0), SMALLER, True, None),
        (about(1.0, 1.0, 1.0), AS_LARGE, False, "perplexity_ratio_mean against production is 1:"),
    ],
)
def test_a_candidate_improves_when_it_is_better_or_no_worse_and_smaller(ratio, size, passes, words):
    """Lower is better here, so the upper end counts; the limit itself passes."""
    production = Production(
        "3", "p" * 64, compared(perplexity={**PERPLEXITY, "mean_ratio": ratio}, bytes=size), None
    )
    settings = against_production("perplexity_ratio_mean", "improves", 1.05)
    decision = decide(SUMMARY, settings, production)
    assert decision.accepted is passes
    assert decision.production == JudgedAgainst(version="3", model="p" * 64)
    (entry,) = decision.gates
    assert (entry.value, entry.low, entry.high) == tuple(ratio.values())
    if words:
        assert words in decision.reasons[0]
        assert decision.reasons[0].endswith("It matters.")


@pytest.mark.parametrize(
    ("ends", "size", "passes"),
    [
        ((0.01, 0.03), AS_LARGE, True),
        ((0.0, 0.03), AS_LARGE, False),
        ((-0.02, 0.03), SMALLER, True),
        ((-0.03, 0.05), SMALLER, False),
    ],
)
def test_where_higher_is_better_the_lower_end_must_improve(ends, size, passes):
    production = Production(
        "3", "p" * 64, compared(mean_difference=about(0.02, *ends), bytes=size), None
    )
    settings = against_production("mean_difference", "improves", -0.02)
    assert decide(SUMMARY, settings, production).accepted is passes


AGAINST = against_production("mean_difference", "improves", 0)


def test_the_first_model_has_nothing_to_improve_on():
    decision = decide(SUMMARY, AGAINST, None)
    assert decision.accepted
    assert decision.production is None
    assert decision.gates[0].reason == "Nothing is in production."
    assert decision.reasons == []


def test_the_model_in_production_passes_again():
    decision = decide(SUMMARY, AGAINST, Production("3", "a" * 64, None, "was not asked"))
    assert decision.accepted
    assert decision.gates[0].reason == "This model is in production."


def test_a_production_model_that_cannot_be_compared_refuses_and_says_why():
    problem = "production and evaluation differ in tokenizer (b and c)"
    decision = decide(SUMMARY, AGAINST, Production("3", "p" * 64, None, problem))
    assert not decision.accepted
    assert decision.reasons == [
        f"mean_difference: version 3, in production, cannot be compared: {problem}. It matters."
    ]
    other = gates("mean_retention", "at_least", 0.9)
    assert decide(SUMMARY, other, Production("3", "p" * 64, None, problem)).accepted


def test_gates_against_production_read_the_comparison_with_it():
    production = Production("3", "p" * 64, compared(mean_retention=about(0.7, 0.6, 0.8)))
    settings = against_production("mean_retention", "at_least", 0.9)
    assert not decide(SUMMARY, settings, production).accepted
    settings = against_production("mean_retention", "at_least", 0.6)
    assert decide(SUMMARY, settings, production).accepted


def test_a_task_that_production_cannot_do_is_refused_in_its_name():
    settings = against_production("task_retention.medqa", "improves", 0.9)
    decision = decide(SUMMARY, settings, Production("3", "p" * 64, compared()))
    assert "the production model's own accuracy, 0.3 (95 % interval" in decision.reasons[0]


@pytest.mark.parametrize(
    ("metric", "against", "words"),
    [
        ("mean_retention", "baseline", "`improves` needs against: production"),
        ("lm_eval_ok", "baseline", "metric lm_eval_ok has no better side"),
        (
            "decode_speedup",
            "production",
            "metric decode_speedup compares with the dense model only",
        ),
        ("reload_ok", "production", "metric reload_ok compares with the dense model only"),
        ("uncalibrated_domains", "production", "compares with the dense model only"),
    ],
)
def test_improving_on_the_baseline_or_without_a_better_side_is_an_error(
    metric, against, words, tmp_path
):
    path = tmp_path / "gates.yaml"
    entry = {"metric": metric, "comparison": "improves", "limit": 0, "against": against}
    path.write_text(json.dumps({"run_mode": "enabled", "gates": [{**entry, "why": "x"}]}))
    with pytest.raises(InputError, match=words) as caught:
        load_gates(path)
    assert "\n" not in str(caught.value)
