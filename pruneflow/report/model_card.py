"""The model card: a README.md as the Hugging Face hub reads it."""

from huggingface_hub import EvalResult

from pruneflow.judge.summary import Summary
from pruneflow.report.comparison_table import comparison, mean_of
from pruneflow.report.directory_card import metadata
from pruneflow.report.rendering import render
from pruneflow.report.verdict import verdict
from pruneflow.settings.pipeline import ModelSettings


def render_card(summary: Summary, model: ModelSettings) -> str:
    """Return the model card: hub metadata, how to load, what was measured, limits.

    Args:
        summary: the machine-readable result.
        model: the dense model, as the settings name it.
    """
    return render(
        "model_card.md.jinja",
        header=metadata(model, results=_results(summary)),
        summary=summary,
        verdict=verdict(summary),
        sections=comparison(summary),
        mean_of=mean_of(summary),
        trust=False,
    )


def _results(summary: Summary) -> list[EvalResult]:
    """What was measured of the pruned model, for the hub's own table."""
    perplexities = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out documents: {domain}",
            metric_type="perplexity",
            metric_value=round(found.pruned, 4),
        )
        for domain, found in summary.perplexity.domains.items()
    ]
    accuracies = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name.upper(),
            metric_type="accuracy",
            metric_name=task.metric,
            metric_value=round(task.pruned["value"], 4),
        )
        for name, task in summary.tasks.items()
    ]
    return [*perplexities, *accuracies]
