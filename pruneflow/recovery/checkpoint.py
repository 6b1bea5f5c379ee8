"""Checkpoints of recovery: everything needed to resume training with identical results.

A directory with ``state.json`` (identity of the run, progress, states of the random generators),
``weights.safetensors`` (trained weights), ``moments.safetensors`` (AdamW), ``best.safetensors``
(best weights, if they are not the current ones) and a manifest. It is written atomically and
verified when read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pruneflow.artifacts import (
    MANIFEST,
    read_json,
    repair,
    sha256_json,
    staged_directory,
    verify_manifest,
    write_json,
    write_manifest,
)
from pruneflow.errors import InputError
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.settings.recovery import RecoverySettings

STATE, WEIGHTS = "state.json", "weights.safetensors"
MOMENTS, BEST = "moments.safetensors", "best.safetensors"
FORMAT = "pruneflow recovery 2"


@dataclass
class Progress:
    """Training progress after `step` steps.

    Attributes:
        step: number of finished steps.
        best_step: the step with the lowest held-out loss.
        best_loss: that loss, in nats per token.
        evals_since_best: evals since then.
        losses: training loss of each step since the last eval.
        history: one row per eval.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    evals_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Snapshot:
    """The content of a checkpoint.

    Attributes:
        progress: training progress.
        weights: trained weights by name.
        moments: ``first/NAME`` and ``second/NAME`` for each of them.
        best: the weights at `progress.best_step`.
        generators: states of torch's random generators, by device type.
    """

    progress: Progress
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    generators: dict[str, torch.Tensor]


def identity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: dict[str, dict[str, torch.Tensor]],
    weights: dict[str, float] | None,
    settings: RecoverySettings,
) -> dict[str, str]:
    """Digests of everything the result depends on; only a run with the same digests may resume.

    The student is the one before training, and `data` is blocks by split and domain. Of the
    settings only `checkpoint_every` is left out.
    """
    blocks = {f"{split}/{name}": t for split, part in data.items() for name, t in part.items()}
    values = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    return {
        "settings": sha256_json(values),
        "student": tensors_digest(student.state_dict()),
        "teacher": tensors_digest(teacher.state_dict()),
        "data": sha256_json([tensors_digest(blocks), list(blocks), weights]),
    }


def write_checkpoint(directory: Path, run: dict[str, str], snapshot: Snapshot) -> None:
    """Replace the checkpoint in `directory` atomically; `run` is the run's `identity`.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    progress = snapshot.progress
    with staged_directory(directory) as new:
        _save(snapshot.weights, new / WEIGHTS)
        _save(snapshot.moments, new / MOMENTS)
        if progress.best_step != progress.step:
            _save(snapshot.best, new / BEST)
        generators = {
            kind: bytes(state.numpy()).hex() for kind, state in snapshot.generators.items()
        }
        state = {"run": run, "progress": vars(progress), "generators": generators}
        write_json(new / STATE, {"format": FORMAT, **state})
        write_manifest(new, kind=FORMAT)


def read_checkpoint(directory: Path, run: dict[str, str]) -> Snapshot | None:
    """Read the checkpoint in `directory`; None if the directory is missing or empty.

    Raises:
        DamagedArtifactError: a file is missing or does not match its sha256.
        InputError: the directory is not a checkpoint, or one of another run.
    """
    repair(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    manifest = verify_manifest(directory) if (directory / MANIFEST).is_file() else {}
    if manifest.get("kind") != FORMAT or not {STATE, WEIGHTS, MOMENTS} <= set(manifest["files"]):
        raise InputError(
            f"{directory} is not a checkpoint of recovery: give another directory, or delete it"
        )
    state = read_json(directory / STATE)
    for part, digest in run.items():
        if state["run"].get(part) != digest:
            raise InputError(
                f"{directory} is a checkpoint of a recovery with other {part}: delete it to start "
                "again, or undo the change"
            )
    progress = Progress(**state["progress"])
    weights = load_file(directory / WEIGHTS)
    if progress.best_step == progress.step:
        best = {name: tensor.clone() for name, tensor in weights.items()}
    else:
        best = load_file(directory / BEST)
    generators = {
        kind: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for kind, text in state["generators"].items()
    }
    return Snapshot(progress, weights, load_file(directory / MOMENTS), best, generators)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
