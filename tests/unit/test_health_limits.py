"""How much of each health limit a round used."""

import pytest

from pruneflow.models.round_record import Health, Repetition
from pruneflow.report.health_limit_use import limits_sentence, uses
from pruneflow.settings.pipeline import HealthSettings
from tests.unit.report_example import ROUNDS

NOT_MEASURED = Health(healthy=False, reasons=["It gives NaN."], reason="It gives NaN.")
HEALTH = NOT_MEASURED.model_copy(
    update={
        "worst_ratio": 2.5,
        "kl": 0.5,
        "repetition": Repetition(dense=0.3, pruned=0.2, rise=-0.1),
        "entropy_drift": -0.25,
        "norm_drift": 0.3,
        "top1_agreement": 0.8,
    }
)
LIMITS = HealthSettings(
    max_perplexity_ratio=4.0,
    max_kl=2.0,
    max_repetition_rise=0.4,
    max_entropy_drift=1.0,
    max_norm_drift=0.2,
    min_top1_agreement=0.6,
)


def test_a_share_goes_from_the_dense_model_to_the_limit():
    shares = {use.measure: use.share for use in uses(HEALTH, LIMITS)}
    assert shares == {
        "worst perplexity ratio": pytest.approx(0.5),
        "KL, nats": pytest.approx(0.25),
        "repetition rise": 0,  # it fell
        "entropy drift": pytest.approx(0.25),  # either way
        "norm drift": pytest.approx(1.5),  # beyond
        "same token": pytest.approx(0.5),
    }


def test_what_was_not_measured_or_has_no_limit_is_left_out():
    assert list(uses(NOT_MEASURED, LIMITS)) == []
    nothing = LIMITS.model_copy(
        update={**dict.fromkeys(HealthSettings.model_fields), "max_perplexity_ratio": 10.0}
    )
    assert [use.measure for use in uses(HEALTH, nothing)] == ["worst perplexity ratio"]
    assert limits_sentence(nothing) == "worst perplexity ratio \u00d7\u202f10.00"


def test_a_round_that_the_check_calls_healthy_uses_no_limit_up():
    for record in ROUNDS:
        found = list(uses(Health.model_validate(record["health"]), HealthSettings()))
        assert len(found) == 6 and all(use.share <= 1 for use in found)
