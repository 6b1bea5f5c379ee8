"""README.md of a model directory: a model card as the Hugging Face hub reads it.

The full card, with the results on held-out text and tasks, is `data/reports/model_card.md` of the
report; this one describes the directory and how to load it.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from pruneflow.artifacts import staged_file
from pruneflow.models.round_record import RoundRecord
from pruneflow.models.structure import layers_of, widths_of
from pruneflow.report.rendering import render
from pruneflow.settings.pipeline import DENSE, ModelSettings

CARD = "README.md"
_OURS = ["pruneflow"]
_TAGS = ["pruned", "structured-pruning", *_OURS]
# What the hub needs to know of any of them to offer a way to load it.
_LOADED: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}


def metadata(
    model: ModelSettings, *, pruned: bool = True, results: list[EvalResult] | None = None
) -> str:
    """Return the card's metadata as YAML.

    The licence is the dense model's, which the pipeline does not know, so none is stated.

    Args:
        model: the dense model.
        pruned: whether the card is about a model that was cut from it.
        results: what was measured, for the hub's own table.
    """
    # Only a hub id comes with a revision; everything else has just a name.
    base = model.source if model.revision else model.name
    data = ModelCardData(
        base_model=base if pruned else None,
        **_LOADED,
        tags=_TAGS if pruned else _OURS,
        model_name=f"{model.name}-pruned" if results else None,
        eval_results=results,
    )
    return data.to_yaml().strip()


def write_card(directory: Path, record: RoundRecord, model: ModelSettings) -> None:
    """Write the card of a model directory of the pipeline.

    Args:
        directory: holds the model.
        record: its ``round.json``.
        model: the dense model.
    """
    dense = record.round == DENSE
    _write(
        directory,
        "directory_card.md.jinja",
        header=metadata(model, pruned=not dense),
        model=model,
        record=record,
        dense=dense,
    )


def write_library_card(directory: Path, name: str, model: PreTrainedModel) -> None:
    """Write the card of a model that the library saves, without measurements.

    Args:
        directory: holds the model.
        name: what to call it.
        model: the model that is in the directory.
    """
    _write(
        directory,
        "library_card.md.jinja",
        header=ModelCardData(**_LOADED, tags=_OURS).to_yaml().strip(),
        name=name,
        family=model.config.model_type,
        parameters=model.num_parameters(),
        widths=[widths_of(layer) for layer in layers_of(model)],
    )


def _write(directory: Path, template: str, **values: Any) -> None:
    """Render a card into a directory, which decides how its model is loaded."""
    text = render(template, trust=any(directory.glob("*.py")), **values)
    with staged_file(directory / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")
