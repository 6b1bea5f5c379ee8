"""One round of the descent as files: parent and calibration set in, round directory out."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from pruneflow.artifacts import (
    MANIFEST,
    read_json,
    sha256_json,
    staged_directory,
    write_json,
)
from pruneflow.compute.ranks import joined
from pruneflow.errors import InputError
from pruneflow.judge.health import check_round
from pruneflow.measure.drift import compare_models
from pruneflow.measure.perplexity import NonFiniteLossError
from pruneflow.models.digests import model_digest, tokenizer_digest
from pruneflow.models.export import save
from pruneflow.models.loading import load_model, load_unrecorded
from pruneflow.models.round_record import read_record, write_record
from pruneflow.models.structure import sizes_of
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS, RECOVERY, RECOVERY_DONE
from pruneflow.pruning.domain_disagreement import disagreement
from pruneflow.pruning.iterative import check_blocks
from pruneflow.pruning.rounds import DenseShape, RoundResult, prune_round
from pruneflow.pruning.schedule import next_weights
from pruneflow.recovery.distillation import recover
from pruneflow.report.directory_card import write_card
from pruneflow.settings.pipeline import DENSE, PipelineSettings
from pruneflow.tokens.calibration_set import CalibrationSet

log = logging.getLogger(__name__)

# Beside the model, in a folder of its own: serving engines read every *.safetensors they find.
STATISTICS = "statistics"
DISAGREEMENT = "disagreement.json"


def prune(settings: PipelineSettings, name: str) -> None:
    """Do one round, check its health, and write it: data/checkpoints/NAME.

    The first rank writes; others take their share of the calibration set and are done. After a
    round that broke a health limit the descent is over: this one writes its record only.
    """
    if name not in settings.rounds:
        raise InputError(
            f"there is no round {name} in configs/pipeline.yaml: use {', '.join(settings.rounds)}"
        )
    parent = read_record(CHECKPOINTS / settings.rounds[name].parent)
    if not joined().is_first:
        if parent["status"] == "done":
            _help(settings, name, parent)
        return
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

    chosen, weights = _calibration(parent)
    made = _make(settings, name, parent, chosen, weights, directory)
    checked = _check(settings, name, chosen, directory)
    losses = checked["validation"]
    following = None
    if "pruned" in losses:
        following = next_weights(
            weights, losses["dense"], losses["pruned"], settings.pruning.domain_feedback
        )
    digest = model_digest(directory)
    healthy = bool(checked["health"]["healthy"])
    delivered = name if healthy else parent["delivered"]
    if not healthy:
        checked["reason"] = (
            f"{checked['health']['reason']} It is kept for study; the run goes on from and "
            f"delivers {delivered}."
        )
        log.warning("%s: %s", name, checked["reason"])
    record = write_record(
        directory,
        round=name,
        parent=parent["round"],
        parent_digest=parent["digest"],
        target=_target(settings, name),
        status="done" if healthy else "unhealthy",
        delivered=delivered,
        delivered_digest=digest if healthy else parent["delivered_digest"],
        digest=digest,
        dense=parent["dense"],
        calibration_set=chosen.digest,
        score=settings.pruning.score,
        refit=settings.pruning.refit,
        layout=settings.pruning.layout,
        weights=weights,
        next_weights=following,
        **made,
        **checked,
    )
    write_card(directory, record, settings.model)


def _help(settings: PipelineSettings, name: str, parent: dict[str, Any]) -> None:
    """Take a rank's share of a round that the first rank writes."""
    chosen, weights = _calibration(parent)
    _compute(settings, name, parent, chosen.take(weights), weights)


def _calibration(parent: dict[str, Any]) -> tuple[CalibrationSet, dict[str, float]]:
    """The calibration set of a round, and the weights of its domains."""
    chosen = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(CHECKPOINTS / parent["round"]))
    return chosen, parent.get("next_weights") or chosen.mixture.weights


def _compute(
    settings: PipelineSettings,
    name: str,
    parent: dict[str, Any],
    blocks: dict[str, torch.Tensor],
    weights: dict[str, float],
) -> tuple[RoundResult, PreTrainedTokenizerBase]:
    """Prune the parent, with all ranks; the tokenizer is its own."""
    start, tokenizer = load_model(CHECKPOINTS / parent["round"], settings.compute)
    check_blocks(start, blocks)
    result = prune_round(
        start,
        blocks,
        settings.rounds[name],
        DenseShape(parent["dense"]["block_weights"], parent["dense"]["neurons"]),
        settings.pruning,
        weights=weights,
        stored_bytes=getattr(torch, settings.model.dtype).itemsize,
        batch_tokens=settings.compute.batch_tokens,
        backward_batch_tokens=settings.compute.backward_batch_tokens,
        label=name,
    )
    joined().leave()
    return result, tokenizer


def _make(
    settings: PipelineSettings,
    name: str,
    parent: dict[str, Any],
    chosen: CalibrationSet,
    weights: dict[str, float],
    directory: Path,
) -> dict[str, Any]:
    """Prune the parent and write model and statistics; say for the record what was done.

    No model outlives it, so that what is checked after it has the memory.
    """
    blocks = chosen.take(weights)
    result, tokenizer = _compute(settings, name, parent, blocks, weights)
    save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
    _write_statistics(directory / STATISTICS, result, settings.pruning.score)
    scores = result.scores[settings.pruning.score]
    return {
        "achieved_ratio": result.achieved_ratio,
        "calibration_losses": scores.losses,
        "score_domains": scores.domains,
        "sequences": {domain: len(rows) for domain, rows in blocks.items()},
        "notes": result.notes,
        **sizes_of(result.model),
    }


def _check(
    settings: PipelineSettings, name: str, chosen: CalibrationSet, directory: Path
) -> dict[str, Any]:
    """Compare what is stored with the dense model: ``validation``, ``drift`` and ``health``.

    Of a model that gives NaN there is only the verdict.
    """
    dense, _ = load_model(CHECKPOINTS / DENSE, settings.compute)
    stored = load_unrecorded(directory, settings.compute)
    try:
        measures = compare_models(
            dense,
            stored,
            chosen.blocks["validation"],
            settings.compute.batch_tokens,
            f"{name} validation",
        )
    except NonFiniteLossError as error:
        reason = f"{str(error)[:1].upper()}{str(error)[1:]}."
        verdict: dict[str, Any] = {"healthy": False, "reasons": [reason], "reason": reason}
        verdict |= {"worst_domain": None, "worst_ratio": None}
        return {"validation": {}, "drift": None, "health": verdict}
    losses = {model: measures.pop(model) for model in ("dense", "pruned")}
    return {
        "validation": losses,
        "drift": measures,
        "health": check_round({**losses, **measures}, settings.health),
    }


def recover_round(settings: PipelineSettings, source: Path, out: Path) -> None:
    """Distil the dense model into a round's model and write the result to `out`.

    Checkpoints lie beside the workspace's outs, in .pruneflow/recovery, until the result is safe.
    """
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
        checkpoint_dir=_checkpoint(settings, record["digest"], chosen.digest),
        batch_tokens=settings.compute.backward_batch_tokens,
    )
    with staged_directory(out) as directory:
        save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
        digest = model_digest(directory)
        facts = {**record, "digest": digest, "recovered_from": record["digest"]}
        recovered = write_record(
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
        write_card(directory, recovered, settings.model)
    if RECOVERY.is_dir():
        # Renamed first: a kill must not leave half a checkpoint under the name that is read.
        shutil.rmtree(RECOVERY_DONE, ignore_errors=True)
        RECOVERY.rename(RECOVERY_DONE)
        shutil.rmtree(RECOVERY_DONE)


def recovery_checkpoint(settings: PipelineSettings) -> Path | None:
    """Where a recovery of the delivered round, as it is now, keeps its checkpoint.

    Returns:
        None when the settings ask for no recovery.

    Raises:
        DamagedArtifactError: the rounds or the calibration set are not there.
    """
    if not settings.recovery.token_budget:
        return None
    delivered = read_record(CHECKPOINTS / settings.final_round)["delivered"]
    source = read_record(CHECKPOINTS / delivered)["digest"]
    return _checkpoint(settings, source, read_json(CALIBRATION_SET / MANIFEST)["digest"])


def _checkpoint(settings: PipelineSettings, source: str, calibration_set: str) -> Path:
    """Another model, text or setting trains anew, beside a checkpoint that was left."""
    values = settings.recovery.model_dump(mode="json", exclude={"checkpoint_every"})
    return RECOVERY / sha256_json([source, calibration_set, values])[:16]


def read_disagreement(directory: Path) -> dict[str, Any] | None:
    """Read how far domains disagreed in a round; None of the dense model, which no round made.

    Raises:
        DamagedArtifactError: it is not JSON.
    """
    path = directory / STATISTICS / DISAGREEMENT
    return dict(read_json(path)) if path.is_file() else None


def _target(settings: PipelineSettings, name: str) -> dict[str, Any]:
    return settings.rounds[name].model_dump(mode="json", exclude={"parent"})


def _write_statistics(directory: Path, result: RoundResult, score: str) -> None:
    """Write what the round found out: every score by domain, how domains disagree, what stayed."""
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
    write_json(directory / DISAGREEMENT, disagreement(result.scores[score]))
    write_json(
        directory / "kept.json",
        {
            "neurons": [kept.tolist() for kept in result.kept.neurons],
            "heads": [kept.tolist() for kept in result.kept.heads],
        },
    )
