"""One round of the descent as files: parent and calibration set in, round directory out."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import sha256_json, staged_directory, write_json
from pruneflow.config import DENSE, PipelineSettings
from pruneflow.errors import InputError
from pruneflow.models.record import read_record, write_record
from pruneflow.models.structure import sizes_of
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS, RECOVERY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruneflow.pruning.rounds import RoundResult

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
                target=_target(settings, name),
                status="skipped",
                reason=f"the descent ended before it: {parent['round']} is {parent['status']}",
                **{key: parent[key] for key in ("delivered", "delivered_digest", "dense")},
            )


def _prune(settings: PipelineSettings, name: str, parent: dict[str, Any], directory: Path) -> None:
    import torch

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
    from pruneflow.pruning.iterative import check_blocks
    from pruneflow.pruning.rounds import DenseShape, prune_round
    from pruneflow.pruning.schedule import next_weights

    parent_directory = CHECKPOINTS / parent["round"]
    chosen = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(parent_directory))
    start, tokenizer = load_model(parent_directory, settings.compute)
    batch_tokens = settings.compute.batch_tokens

    def validate_model(network: "PreTrainedModel", label: str) -> dict[str, Any]:
        return perplexity_by_domain(network, chosen.blocks["validation"], batch_tokens, label)

    # The dense model is measured once, by the first round; later rounds hand its figures on.
    validation = parent.get("validation")
    dense_losses = validation["dense"] if validation else validate_model(start, f"{name} dense")
    weights = parent.get("next_weights") or chosen.mixture.weights
    blocks = chosen.take(weights)
    check_blocks(start, blocks)
    result = prune_round(
        start,
        blocks,
        settings.rounds[name],
        DenseShape(parent["dense"]["block_weights"], parent["dense"]["neurons"]),
        settings.pruning,
        weights=weights,
        stored_bytes=getattr(torch, settings.model.dtype).itemsize,
        batch_tokens=batch_tokens,
        backward_batch_tokens=settings.compute.backward_batch_tokens,
        label=name,
    )
    save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
    stored = load_unrecorded(directory, settings.compute)  # what is measured is what is stored
    losses = {"dense": dense_losses}
    following = None
    try:
        losses["pruned"] = validate_model(stored, f"{name} validation")
        health = check_round(dense_losses, losses["pruned"], settings.health)
        following = next_weights(
            weights, dense_losses, losses["pruned"], settings.pruning.domain_feedback
        )
    except NonFiniteLossError as error:
        health = {
            "healthy": False,
            "worst_domain": None,
            "worst_ratio": None,
            "reason": str(error),
        }
    _write_statistics(directory / STATISTICS, result, settings.pruning.score)
    digest = model_digest(directory)
    healthy = bool(health["healthy"])
    scores = result.scores[settings.pruning.score]
    write_record(
        directory,
        round=name,
        parent=parent["round"],
        parent_digest=parent["digest"],
        target=_target(settings, name),
        achieved_ratio=result.achieved_ratio,
        status="done" if healthy else "unhealthy",
        delivered=name if healthy else parent["delivered"],
        delivered_digest=digest if healthy else parent["delivered_digest"],
        digest=digest,
        dense=parent["dense"],
        calibration_set=chosen.digest,
        calibration_losses=scores.losses,
        score_domains=scores.domains,
        score=settings.pruning.score,
        refit=settings.pruning.refit,
        layout=settings.pruning.layout,
        weights=weights,
        sequences={domain: len(rows) for domain, rows in blocks.items()},
        next_weights=following,
        notes=result.notes,
        validation=losses,
        health=health,
        **sizes_of(result.model),
    )


def recover_round(settings: PipelineSettings, source: Path, out: Path) -> None:
    """Distil the dense model into a round's model and write the result to `out`.

    Checkpoints lie beside the workspace's outs, in .pruneflow/recovery, until the result is safe.
    """
    import torch

    from pruneflow.calibration.blocks import CalibrationSet
    from pruneflow.models.export import save
    from pruneflow.models.loading import load_model, model_digest, tokenizer_digest
    from pruneflow.recovery.distillation import recover

    record = read_record(source)
    chosen = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(source))
    student, tokenizer = load_model(source, settings.compute)
    teacher, _ = load_model(CHECKPOINTS / DENSE, settings.compute)
    result = recover(
        student,
        teacher,
        chosen.blocks["recovery"],
        chosen.blocks["validation"],
        settings.recovery,
        weights=chosen.mixture.weights,
        checkpoint_dir=RECOVERY / _recovery_name(settings, record["digest"], chosen.digest),
        batch_tokens=settings.compute.backward_batch_tokens,
    )
    with staged_directory(out) as directory:
        save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
        digest = model_digest(directory)
        facts = {**record, "digest": digest, "recovered_from": record["digest"]}
        write_record(
            directory,
            **facts,
            recovery={
                "steps": result.steps,
                "tokens": result.tokens,
                "best_step": result.best_step,
                "stopped_early": result.stopped_early,
                "history": result.history,
            },
        )
    if RECOVERY.is_dir():
        # Renamed first: a kill must not leave half a checkpoint under the name that is read.
        done = RECOVERY.with_name("recovery.done")
        shutil.rmtree(done, ignore_errors=True)
        RECOVERY.rename(done)
        shutil.rmtree(done)


def _recovery_name(settings: PipelineSettings, source: str, calibration_set: str) -> str:
    """Another model, text or setting trains anew, beside a checkpoint that was left."""
    values = settings.recovery.model_dump(mode="json", exclude={"checkpoint_every"})
    return sha256_json([source, calibration_set, values])[:16]


def _target(settings: PipelineSettings, name: str) -> dict[str, Any]:
    return settings.rounds[name].model_dump(mode="json", exclude={"parent"})


def _write_statistics(directory: Path, result: "RoundResult", score: str) -> None:
    """Write what the round found out: every score by domain, how domains disagree, what stayed."""
    from safetensors.torch import save_file

    from pruneflow.pruning.disagreement import disagreement

    directory.mkdir()
    save_file(
        {
            f"{name}.{kind}.{layer:03d}": tensor.float().contiguous()
            for name, scores in result.scores.items()
            for kind, tensors in scores.units.items()
            for layer, tensor in enumerate(tensors)
        },
        directory / "scores.safetensors",
    )
    rows = {name: scores.domains for name, scores in result.scores.items()}
    write_json(directory / "scores.json", {"score": score, "rows": rows})
    write_json(directory / "disagreement.json", disagreement(result.scores[score]))
    write_json(
        directory / "kept.json",
        {
            "neurons": [kept.tolist() for kept in result.kept.neurons],
            "heads": [kept.tolist() for kept in result.kept.heads],
        },
    )
