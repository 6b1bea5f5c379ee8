"""One model against another, from the records that the stages `baseline` and `evaluation` write.

The reference is the dense model, or the model that is in production.
"""

from typing import Any

from pruneflow.errors import InputError
from pruneflow.judge.retention import mean_over_tasks, perplexity_estimates, task_retention
from pruneflow.settings.pipeline import EvaluationSettings

# What two records must share to be compared, and what it is called.
SAME = {
    "tokenizer": "tokenizer",
    "held_out": "held-out text",
    "questions": "questions and prompts",
    "dtype": "compute.dtype",
}
_MEASURED = ("correct", "acc", "acc_norm", "exact_match", "answers")


def compare(
    reference: dict[str, Any],
    candidate: dict[str, Any],
    settings: EvaluationSettings,
    between: tuple[str, str] = ("baseline", "evaluation"),
) -> dict[str, Any]:
    """Put the candidate's measurements beside the reference's, with paired 95 % intervals.

    Args:
        reference: record of the model to compare with.
        candidate: record of the pruned model.
        settings: bootstrap resamples and seed.
        between: what the two are called in an error.

    Returns:
        ``parameters`` (with ``block_ratio``, the share of the reference's block weights that is
        gone), ``bytes``, ``perplexity`` by domain, ``tasks``, and ``mean_difference`` and
        ``mean_retention`` over the measurable tasks. The reference's figures are named ``dense``.

    Raises:
        InputError: the two were measured on different text or questions, or with another
            tokenizer or data type.
    """
    check_comparable(reference, candidate, between)
    tasks, draws = {}, {}
    for place, (name, asked) in enumerate(candidate["tasks"].items()):
        facts, draws[name] = task_retention(
            reference["tasks"][name]["correct"],
            asked["correct"],
            asked["chance"],
            settings.bootstrap_samples,
            settings.seed + place,
        )
        how = {key: value for key, value in asked.items() if key not in _MEASURED}
        tasks[name] = {**how, **facts}
    means = mean_over_tasks(tasks, draws)
    before, after = reference["model"], candidate["model"]
    return {
        "parameters": _parameters(before, after),
        "bytes": {
            "dense": before["bytes"],
            "pruned": after["bytes"],
            "ratio": after["bytes"] / before["bytes"],
        },
        "perplexity": _perplexity(reference["perplexity"], candidate["perplexity"], settings),
        "tasks": tasks,
        "mean_difference": means["difference"],
        "mean_retention": means["retention"],
    }


def check_comparable(
    reference: dict[str, Any], candidate: dict[str, Any], between: tuple[str, str]
) -> None:
    """Check that two records are of the same text, questions, tokenizer and data type.

    Raises:
        InputError: they are not, or one has no task or domain of the other.
    """
    for key, name in SAME.items():
        if reference.get(key) != candidate.get(key):
            raise InputError(
                f"{between[0]} and {between[1]} differ in {name} ({_short(reference.get(key))} "
                f"and {_short(candidate.get(key))}), so they cannot be compared: {_way_out(key)}"
            )
    if set(reference["tasks"]) != set(candidate["tasks"]):
        name = sorted(set(reference["tasks"]) ^ set(candidate["tasks"]))[0]
        raise InputError(
            f"{between[0]} and {between[1]} were not asked the same tasks ({name}), so they "
            "cannot be compared: run `dvc repro` again"
        )


def _way_out(key: str) -> str:
    if key == "dtype":
        return "set compute.dtype in configs/pipeline.yaml, so that both are measured in one type"
    return "run `dvc repro` again"


def _short(value: Any) -> str:
    return str(value)[:12]


def _parameters(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    return {
        "dense": dense["parameters"],
        "pruned": pruned["parameters"],
        "ratio": 1 - pruned["parameters"] / dense["parameters"],
        "block_weights": {"dense": dense["block_weights"], "pruned": pruned["block_weights"]},
        "block_ratio": 1 - pruned["block_weights"] / dense["block_weights"],
    }


def _perplexity(
    dense: dict[str, Any], pruned: dict[str, Any], settings: EvaluationSettings
) -> dict[str, Any]:
    found = perplexity_estimates(dense, pruned, settings.bootstrap_samples, settings.seed)
    return {
        "domains": {
            domain: {
                "dense": dense[domain]["perplexity"],
                "pruned": pruned[domain]["perplexity"],
                "ratio": ratio,
                "tokens": dense[domain]["tokens"],
                "windows": len(dense[domain]["windows"]),
                "bytes": dense[domain]["bytes"],
                "bits_per_byte": {
                    "dense": dense[domain]["bits_per_byte"],
                    "pruned": pruned[domain]["bits_per_byte"],
                },
            }
            for domain, ratio in found["domains"].items()
        },
        "mean_ratio": found["mean"],
        "worst": found["worst"],
    }
