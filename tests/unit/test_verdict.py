"""The report opens with what was gained and what the gates against the dense model decide."""

from pruneflow.report.verdict import rule, verdict
from tests.unit.report_example import (
    GATES,
    WORSE,
    page_of,
    summarise,
    the_page,
    visible,
    with_gates,
)


def test_verdict_says_how_much_smaller_how_much_faster_and_what_was_kept():
    assert verdict(summarise()).startswith(
        "SmolLM2-135M-Instruct is 16.0% smaller (20.3% of its block weights are removed) and "
        "decodes 1.19 times as fast; perplexity is 1.41 times"
    )
    assert "and it keeps 93% of PIQA and 95% of SIQA accuracy." in verdict(summarise())


def test_verdict_claims_no_speed_that_the_interval_does_not_show():
    summary = summarise()
    summary.latency.speedup.decode.update(median=1.05, low=0.74, high=1.37)
    assert "and decodes with no measurable difference in speed; perplexity" in verdict(summary)
    summary.latency.speedup.decode.update(median=0.9, low=0.85, high=0.95)
    assert "and decodes 0.90 times as fast; perplexity" in verdict(summary)


def test_a_model_that_passes_is_accepted_unless_a_gate_against_production_is_left_to_the_run():
    alone = GATES.model_dump(exclude_none=True)["gates"][:2]
    assert rule(summarise(), with_gates(*alone))[:2] == ("accepted", "Accepted: 2 of 2 gates.")
    ruling = rule(summarise(), GATES)
    assert ruling.word == "undecided"
    assert ruling.sentence == (
        "Passed: 2 of 2 gates against the dense model. `pruneflow run` checks 1 gate against the "
        "model in production and writes data/reports/decision.json."
    )
    assert [gate.result for gate in ruling.gates] == ["passed", "passed", "open"]
    assert "<code>pruneflow run</code> checks 1 gate" in the_page()


def test_a_refusal_says_which_gate_refuses_and_why():
    gates = with_gates(*GATES.model_dump(exclude_none=True)["gates"], WORSE)
    ruling = rule(summarise(), gates)
    assert (ruling.word, ruling.sentence) == (
        "refused",
        "Refused: 2 of 3 gates against the dense model passed.",
    )
    (reason,) = ruling.reasons
    assert "block_ratio is 0.203" in reason and "below the limit 0.5. Much smaller." in reason
    text = visible(page_of(gates=gates))
    assert text.index(ruling.sentence) < text.index(reason) < text.index("Dense and pruned", 99)
    assert "block ratio at least 0.5 0.2033 refused Much smaller." in text


def test_gates_that_only_record_or_are_off_are_said_to_be_so():
    ruling = rule(summarise(), with_gates(WORSE, run_mode="dry_run"))
    assert ruling.word == "refused" and ruling.sentence.endswith("(run_mode dry_run).")
    ruling = rule(summarise(), with_gates(WORSE, run_mode="disabled"))
    assert ruling.word == "undecided" and "the gates are disabled" in ruling.sentence
    assert "the gates are disabled" in visible(
        page_of(gates=with_gates(WORSE, run_mode="disabled"))
    )


def test_nothing_is_decided_where_every_gate_compares_with_production():
    ruling = rule(summarise(), with_gates(GATES.gates[2].model_dump()))
    assert ruling.word == "undecided" and ruling.sentence.startswith(
        "Not decided yet. `pruneflow run` checks 1 gate"
    )
