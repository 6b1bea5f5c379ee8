"""Recovery's checkpoints: all that a run needs to go on as if it had never stopped.

A directory with ``state.json`` (whose run it is, where it stands, the generators' states),
``weights.safetensors`` (the trained ones), ``moments.safetensors`` (AdamW's),
``best.safetensors`` (the best weights, when they are not the present ones) and a manifest. It is
written beside its name and renamed, and verified on reading.
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
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.settings.recovery import RecoverySettings

STATE, WEIGHTS, MOMENTS, BEST = (
    "state.json",
    "weights.safetensors",
    "moments.safetensors",
    "best.safetensors",
)
FORMAT = "pruneflow recovery 1"


@dataclass
class Progress:
    """Where a run stands after `step` steps.

    Attributes:
        step: steps done.
        best_step: the step after which the held-out loss was lowest.
        best_loss: that loss, in nats a token.
        stale: looks at the held-out loss since then.
        losses: training loss of each step since the last look.
        history: a row for each look.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    stale: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Snapshot:
    """The content of a checkpoint.

    Attributes:
        progress: where the run stands.
        weights: trained weights by name.
        moments: ``first/NAME`` and ``second/NAME`` for each of them.
        best: the weights at `progress.best_step`.
        generators: states of torch's random generators by device type.
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
    """What a run's result depends on, as digests; a checkpoint serves runs with the same alone.

    Args:
        student: before training.
        teacher: the dense parent.
        data: blocks by split and domain.
        weights: of the domains, or None.
        settings: all of them count but `checkpoint_every`.
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
    """Replace the checkpoint in `directory`; a kill leaves the old one or the new one.

    Args:
        directory: of the checkpoint alone.
        run: what `identity` says of the run.
        snapshot: what to keep.

    Raises:
        InputError: the place cannot be written, or the disk is full.
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
    """Read the checkpoint in `directory`, or None when there is none yet.

    Args:
        directory: where `write_checkpoint` wrote, or nothing, or an empty folder.
        run: what `identity` says of the run that wants to go on.

    Raises:
        DamagedArtifactError: a file is missing or its bytes are not those written.
        InputError: something else lies there, or the checkpoint is of another run.
    """
    repair(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not directory.is_dir() or not (directory / MANIFEST).is_file():
        raise InputError(
            f"{directory} is not a checkpoint of recovery (no {MANIFEST}): choose another place, "
            "or delete it"
        )
    manifest = verify_manifest(directory)
    if manifest.get("kind") != FORMAT or not {STATE, WEIGHTS, MOMENTS} <= set(manifest["files"]):
        raise InputError(
            f"{directory} is not a checkpoint of this recovery (its kind is "
            f"{manifest.get('kind')}): choose another place, or delete it"
        )
    state = read_json(directory / STATE)
    for what, digest in run.items():
        if state["run"].get(what) != digest:
            raise InputError(
                f"{directory} is a checkpoint of a recovery with other {what}: delete it to start "
                "anew, or take back the change"
            )
    progress = Progress(**state["progress"])
    weights = load_file(directory / WEIGHTS)
    if progress.best_step == progress.step:
        best = {name: tensor.clone() for name, tensor in weights.items()}
    elif BEST in manifest["files"]:
        best = load_file(directory / BEST)
    else:
        raise DamagedArtifactError(f"{directory / BEST} is missing: delete {directory}")
    generators = {
        kind: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for kind, text in state["generators"].items()
    }
    return Snapshot(progress, weights, load_file(directory / MOMENTS), best, generators)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
