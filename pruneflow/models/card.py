"""README.md beside a model: a model card as the Hugging Face hub reads it.

The full card, with what was measured on the held-out text and the tasks, is the report's
(`data/reports/model_card.md`); this one says what the directory is and how to load it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import staged_file
from pruneflow.config import DENSE, ModelSettings
from pruneflow.templating import templates

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
_TEMPLATE = "model_card.md.jinja"
_TAGS = ["pruned", "structured-pruning", "pruneflow"]


def metadata(
    model: ModelSettings, *, pruned: bool = True, results: "list[EvalResult] | None" = None
) -> str:
    """Return the card's metadata as YAML.

    The licence is the dense model's, which the pipeline does not know, so none is stated.

    Args:
        model: the dense model.
        pruned: whether the card is about a model that was cut from it.
        results: what was measured, for the hub's own table.
    """
    from huggingface_hub import ModelCardData

    # Only a hub id comes with a revision; everything else has just a name.
    base = model.source if model.revision else model.name
    data = ModelCardData(
        base_model=base if pruned else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS if pruned else ["pruneflow"],
        model_name=f"{model.name}-pruned" if results else None,
        eval_results=results,
    )
    return data.to_yaml().strip()


def write_card(directory: Path, record: dict[str, Any], model: ModelSettings) -> None:
    """Write the card of a model directory of the pipeline.

    Args:
        directory: holds the model.
        record: its ``round.json``.
        model: the dense model.
    """
    validation = record.get("validation") or {}
    text = (
        templates(Path(__file__).parent)
        .get_template(_TEMPLATE)
        .render(
            header=metadata(model, pruned=record["round"] != DENSE),
            model=model,
            record=record,
            dense=record["round"] == DENSE,
            losses=[
                (domain, loss["perplexity"], validation["pruned"][domain]["perplexity"])
                for domain, loss in validation.get("dense", {}).items()
            ],
            trust=any(directory.glob("*.py")),
        )
    )
    with staged_file(directory / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")
