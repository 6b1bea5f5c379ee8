"""One round of the descent as files: parent and calibration set in, round directory out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import staged_directory, write_json
from pruneflow.config import PipelineSettings
from pruneflow.errors import InputError
from pruneflow.models.record import read_record, write_record
from pruneflow.models.structure import sizes_of
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Beside the model, in a folder of its own: serving engines read every *.safetensors they find.
STATISTICS = "statistics"


def prune(settings: PipelineSettings, name: str) -> None:
    """Do one round, check its health, and write it: data/checkpoints/NAME.

    After a round that broke a health limit the descent is over: this one writes its record only.
    """
    if name not in settings.rounds:
        raise InputError(
            f"there is no round {name} in configs/pipeline.yaml: use {', '.join(settings.rounds)}"
        )
    parent = read_record(CHECKPOINTS / settings.rounds[name].parent)
    with staged_directory(CHECKPOINTS / name) as directory:
        if parent["status"] == "done":
            _prune(settings, name, parent, directory)
        else:
            write_record(
                directory,
                round=name,
                parent=parent["round"],
                ratio=settings.rounds[name].ratio,
                status="skipped",
                reason=f"the descent ended before it: {parent['round']} is {parent['status']}",
                **{key: parent[key] for key in ("delivered", "delivered_digest", "dense")},
            )


def _prune(settings: PipelineSettings, name: str, parent: dict[str, Any], directory: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from pruneflow.calibration.blocks import CalibrationSet
    from pruneflow.evaluation.health import check_round
    from pruneflow.evaluation.perplexity import NonFiniteLossError, perplexity_by_domain
    from pruneflow.models.export import save
    from pruneflow.models.loading import (
        load_model,
        load_unrecorded,
        model_digest,
        tokenizer_digest,
    )
    from pruneflow.pruning.rounds import DenseShape, prune_round

    parent_directory = CHECKPOINTS / parent["round"]
    ratio = settings.rounds[name].ratio
    chosen = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(parent_directory))
    start, tokenizer = load_model(parent_directory, settings.compute)
    batch_tokens = settings.compute.batch_tokens

    def validate_model(network: "PreTrainedModel", label: str) -> dict[str, Any]:
        return perplexity_by_domain(network, chosen.blocks["validation"], batch_tokens, label)

    # The dense model is measured once, by the first round; later rounds hand its figures on.
    validation = parent.get("validation")
    dense_losses = validation["dense"] if validation else validate_model(start, f"{name} dense")
    result = prune_round(
        start,
        chosen.blocks["calibration"],
        ratio,
        DenseShape(parent["dense"]["block_weights"], parent["dense"]["neurons"]),
        settings.pruning,
        weights=settings.calibration.weights,
        batch_tokens=batch_tokens,
        backward_batch_tokens=settings.compute.backward_batch_tokens,
        label=name,
    )
    save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
    stored = load_unrecorded(directory, settings.compute)  # what is measured is what is stored
    losses = {"dense": dense_losses}
    try:
        losses["pruned"] = validate_model(stored, f"{name} validation")
        health = check_round(dense_losses, losses["pruned"], settings.health)
    except NonFiniteLossError as error:
        health = {
            "healthy": False,
            "worst_domain": None,
            "worst_ratio": None,
            "reason": str(error),
        }
    statistics = directory / STATISTICS
    statistics.mkdir()
    units = {"neurons": result.scores.neurons, "kv_groups": result.scores.kv_groups}
    save_file(
        {
            f"{kind}.{layer:03d}": tensor.float().contiguous()
            for kind, tensors in units.items()
            for layer, tensor in enumerate(tensors)
        },
        statistics / "scores.safetensors",
    )
    write_json(
        statistics / "kept.json",
        {
            "neurons": [kept.tolist() for kept in result.kept.neurons],
            "kv_groups": [kept.tolist() for kept in result.kept.kv_groups],
        },
    )
    digest = model_digest(directory)
    healthy = bool(health["healthy"])
    write_record(
        directory,
        round=name,
        parent=parent["round"],
        parent_digest=parent["digest"],
        ratio=ratio,
        achieved_ratio=result.achieved_ratio,
        status="done" if healthy else "unhealthy",
        delivered=name if healthy else parent["delivered"],
        delivered_digest=digest if healthy else parent["delivered_digest"],
        digest=digest,
        dense=parent["dense"],
        calibration_set=chosen.digest,
        calibration_losses=result.scores.losses,
        score_domains=result.scores.domains,
        score=settings.pruning.score,
        refit=settings.pruning.refit,
        validation=losses,
        health=health,
        **sizes_of(result.model),
    )
