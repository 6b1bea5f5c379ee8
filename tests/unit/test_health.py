"""Limits that a round may break, and the knee of curves whose knee is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.artifacts import read_json
from pruneflow.errors import InputError
from pruneflow.judge.health import check_round, knee
from pruneflow.models.round_record import DomainPair, Drift, Validation
from pruneflow.settings.pipeline import HealthSettings
from tests.conftest import ROOT

OPEN = {
    "max_perplexity_ratio": 1e6,
    "max_kl": None,
    "min_top1_agreement": None,
    "max_repetition_rise": None,
    "max_entropy_drift": None,
    "max_norm_drift": None,
}


def loss(perplexity, tokens=100):
    nll = tokens * math.log(perplexity) if math.isfinite(perplexity) else perplexity
    return {"nll": nll, "tokens": tokens, "perplexity": perplexity}


def measures(**changes):
    """What `compare_models` might give for a round; unchecked, so that NaN can be among it."""
    values = {
        "dense": {"a": loss(10), "b": loss(10)},
        "pruned": {"a": loss(11), "b": loss(29)},
        "kl": {"a": 0.2, "b": 0.6},
        "top1_agreement": {"a": 0.8, "b": 0.6},
        "entropy": {"dense": {"a": 2.0, "b": 3.0}, "pruned": {"a": 1.5, "b": 2.9}},
        "repetition": {"dense": {"a": 0.1, "b": 0.3}, "pruned": {"a": 0.3, "b": 0.6}},
        "norms": [0.01, -0.2, 0.1],
        **changes,
    }
    losses = {model: values.pop(model) for model in ("dense", "pruned")}
    for key in ("entropy", "repetition"):
        values[key] = DomainPair.model_construct(**values[key])
    return Validation.model_construct(**losses), Drift.model_construct(**values)


def test_measures_are_means_over_domains():
    verdict = check_round(*measures(), HealthSettings(**OPEN))
    assert verdict.healthy is True
    assert verdict.reasons == []
    assert (verdict.worst_domain, verdict.norm_layer) == ("b", 1)
    assert verdict.worst_ratio == pytest.approx(2.9)
    assert verdict.mean_ratio == pytest.approx(math.sqrt(1.1 * 2.9))
    assert verdict.kl == pytest.approx(0.4)
    assert verdict.top1_agreement == pytest.approx(0.7)
    assert verdict.repetition.model_dump() == pytest.approx(
        {"dense": 0.2, "pruned": 0.45, "rise": 0.25}
    )
    assert verdict.entropy_drift == pytest.approx(-0.3)
    assert verdict.norm_drift == pytest.approx(0.2)
    assert "b, has 2.9 times" in verdict.reason


# A limit, a value of it that the measures above just break, one that they just keep, and a word.
EDGES = [
    ("max_perplexity_ratio", 2.89, 2.91, "worst domain, b, has 2.9 times"),
    ("max_kl", 0.39, 0.41, "KL from the dense model is 0.4 nats"),
    ("min_top1_agreement", 0.71, 0.69, "most likely next token for 0.7 of the tokens"),
    ("max_repetition_rise", 0.24, 0.26, "repeated 4-grams in greedy text rose by 0.25"),
    ("max_entropy_drift", 0.29, 0.31, "entropy of the next token changed by -0.3 nats"),
    ("max_norm_drift", 0.19, 0.21, "layer 1 changed by 0.2"),
]


@pytest.mark.parametrize(("limit", "broken", "kept", "words"), EDGES)
def test_each_limit_alone_makes_a_round_unhealthy(limit, broken, kept, words):
    assert check_round(*measures(), HealthSettings(**{**OPEN, limit: kept})).healthy is True
    verdict = check_round(*measures(), HealthSettings(**{**OPEN, limit: broken}))
    assert verdict.healthy is False
    assert len(verdict.reasons) == 1
    assert words in verdict.reason
    assert f"limit of {broken:g}" in verdict.reason


def test_every_broken_limit_has_a_sentence_and_the_record_one_for_all():
    verdict = check_round(
        *measures(), HealthSettings(**{limit: broken for limit, broken, _kept, _words in EDGES})
    )
    assert len(verdict.reasons) == 6
    for _limit, _broken, _kept, words in EDGES:
        assert sum(words in reason for reason in verdict.reasons) == 1
    assert verdict.reason.endswith("and 5 more limits are broken.")
    assert verdict.reason.count(". ") == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("limit", "limit_value", "key", "changes"),
    [
        ("max_kl", 5.0, "kl", lambda x: {"kl": {"a": x, "b": 0.1}}),
        ("max_norm_drift", 5.0, "norm_drift", lambda x: {"norms": [0.0, x, 0.1]}),
        (
            "max_entropy_drift",
            5.0,
            "entropy_drift",
            lambda x: {"entropy": {"dense": {"a": 1, "b": 1}, "pruned": {"a": x, "b": 1}}},
        ),
        ("min_top1_agreement", 0.1, "top1_agreement", lambda x: {"top1_agreement": {"a": -x}}),
        (
            "max_perplexity_ratio",
            50.0,
            "worst_ratio",
            lambda x: {"pruned": {"a": loss(11), "b": loss(x)}},
        ),
    ],
)
def test_a_measure_that_is_not_finite_breaks_its_limit(value, limit, limit_value, key, changes):
    settings = HealthSettings(**{**OPEN, limit: limit_value})
    verdict = check_round(*measures(**changes(value)), settings)
    assert verdict.healthy is False
    assert getattr(verdict, key) is None


def test_a_limit_that_is_not_set_is_not_checked():
    drifted = measures(kl={"a": 99.0, "b": 99.0}, norms=[9.0, 9.0])
    assert check_round(*drifted, HealthSettings(**OPEN)).healthy is True


def test_measures_of_other_domains_are_refused():
    with pytest.raises(InputError, match="same domains"):
        check_round(*measures(pruned={"a": loss(11)}), HealthSettings(**OPEN))


def curve(function, rounds=10):
    return [(step / rounds, function(step / rounds)) for step in range(1, rounds + 1)]


def test_the_knee_of_known_curves():
    # Of x^2 below the chord y = x: the deepest point is x = 1/2. Of (e^kx - 1): ln((e^k - 1)/k)/k.
    assert knee(curve(lambda x: x * x)) == 4
    k = 6.0
    deepest = math.log((math.exp(k) - 1) / k) / k
    assert knee(curve(lambda x: math.exp(k * x) - 1, 100)) == round(100 * deepest) - 1


@given(
    st.integers(3, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 2))),
    st.floats(0.0, 1.0),
    st.floats(1.1, 50.0),
    st.floats(0.05, 0.9),
)
def test_the_knee_of_a_bent_line_is_its_bend(where, slope, steeper, share):
    rounds, bend = where
    xs = [share * (step + 1) / rounds for step in range(rounds)]
    points = [(x, slope * x + (slope + steeper) * max(0.0, x - xs[bend])) for x in xs]
    assert knee(points) == bend


@given(st.lists(st.floats(0.01, 2.0), min_size=3, max_size=12), st.floats(0.1, 9.0))
def test_the_knee_does_not_depend_on_the_unit_of_loss(rises, factor):
    rises = sorted(rises)
    points, scaled, total = [], [], 0.0
    for step, rise in enumerate(rises, start=1):
        total += rise
        points.append((0.05 * step, total))
        scaled.append((0.05 * step, factor * total))
    found, again = knee(points), knee(scaled)
    if found is None or again is None:
        assert max(rises) - min(rises) < 1e-6
        return
    depths = [total * (step + 1) / len(points) - y for step, (_x, y) in enumerate(points)]
    assert depths[found] == pytest.approx(depths[again], abs=1e-9) == max(depths)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0.1, 0.1), (0.2, 0.9)],
        curve(lambda x: 2 * x),
        curve(math.sqrt),
        curve(lambda x: 0.0),
        curve(lambda x: -x * (1 - x)),
        [(0.1, 1.0), (0.2, 1.1), (0.3, 1.2), (0.4, 3.0)],
        [(0.1, 0.1), (0.2, math.nan), (0.3, 2.0)],
        [(0.1, 0.1), (0.2, 0.2), (0.3, math.inf)],
    ],
)
def test_there_is_no_knee_without_a_bend(points):
    assert knee(points) is None


def test_the_limits_separate_the_measured_schedules():
    """Below half of the weights the method keeps all limits; the control breaks each of them."""
    broken = set()
    for run in read_json(ROOT / "benchmarks/results/health_limits.json")["runs"]:
        for name, descent in run["descents"].items():
            for record in descent["rounds"]:
                measured = measures(
                    dense={"text": loss(10)},
                    pruned={"text": loss(10 * record["worst_ratio"])},
                    kl={"text": record["kl"]},
                    top1_agreement={"text": record["top1_agreement"]},
                    entropy={"dense": {"text": 0}, "pruned": {"text": record["entropy_drift"]}},
                    repetition={
                        model: {"text": record["repetition"][model]}
                        for model in ("dense", "pruned")
                    },
                    norms=[record["norm_drift"]],
                )
                verdict = check_round(*measured, HealthSettings())
                if name in ("uniform", "per_layer") and record["achieved_ratio"] < 0.5:
                    assert verdict.healthy, (run["setup"]["text"], name, record["round"])
                if name == "control" and record["achieved_ratio"] > 0.12:
                    assert not verdict.healthy
                for limit, value in HealthSettings().model_dump().items():
                    if value is not None and name in ("control", "random", "no_refit"):
                        alone = HealthSettings(**{**OPEN, limit: value})
                        broken |= set() if check_round(*measured, alone).healthy else {limit}
    assert broken == {key for key, value in HealthSettings().model_dump().items() if value}


def test_the_measured_knees_are_those_of_the_measured_rounds():
    runs = read_json(ROOT / "benchmarks/results/health_limits.json")["runs"]
    knees = {}
    for run in runs:
        for name, descent in run["descents"].items():
            rounds = descent["rounds"]
            points = [(r["achieved_ratio"], math.log(r["mean_ratio"])) for r in rounds]
            place = knee(points)
            assert descent["knee"] == (None if place is None else rounds[place]["round"])
            knees[run["setup"]["text"], name] = descent["knee"]
    assert knees["bench-v1", "uniform"] == "r7"
