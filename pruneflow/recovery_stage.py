"""The stage `select`, as far as it trains: the delivered round's model is recovered."""

import shutil
from pathlib import Path

import torch

from pruneflow.artifacts import MANIFEST, read_json, sha256_json, staged_directory
from pruneflow.models.digests import model_digest, tokenizer_digest
from pruneflow.models.export import save
from pruneflow.models.loading import load_model
from pruneflow.models.round_record import Recovery, read_round_record, write_round_record
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS, RECOVERY, RECOVERY_DONE
from pruneflow.recovery.distillation import recover
from pruneflow.report.directory_card import write_card
from pruneflow.settings.pipeline import DENSE, PipelineSettings
from pruneflow.tokens.calibration_set import CalibrationSet


def recover_round(settings: PipelineSettings, source: Path, out: Path) -> None:
    """Distil the dense model into a round's model and write the result to `out`.

    Checkpoints are kept outside the outs of DVC, in .pruneflow/recovery, until the result is safe.
    """
    record = read_round_record(source)
    calibration = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(source))
    student, tokenizer = load_model(source, settings.compute)
    teacher, _ = load_model(CHECKPOINTS / DENSE, settings.compute)
    result = recover(
        student,
        teacher,
        calibration.blocks["recovery"],
        calibration.blocks["validation"],
        settings.recovery,
        weights=calibration.mixture.weights,
        checkpoint_dir=_checkpoint(settings, record.digest, calibration.digest),
        batch_tokens=settings.compute.backward_batch_tokens,
    )
    with staged_directory(out) as directory:
        save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
        digest = model_digest(directory)
        recovered = record.model_copy(
            update={
                "digest": digest,
                "recovered_from": record.digest,
                "recovery": Recovery.model_validate(result, from_attributes=True),
            }
        )
        write_round_record(directory, recovered)
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
    delivered = read_round_record(CHECKPOINTS / settings.final_round).delivered
    source = read_round_record(CHECKPOINTS / delivered).digest
    return _checkpoint(settings, source, read_json(CALIBRATION_SET / MANIFEST)["digest"])


def _checkpoint(settings: PipelineSettings, source: str | None, calibration_set: str) -> Path:
    """A directory for each model, text and settings: a change of one starts from the beginning."""
    values = settings.recovery.model_dump(mode="json", exclude={"checkpoint_every"})
    return RECOVERY / sha256_json([source, calibration_set, values])[:16]
