"""Evaluation of a model on the held-out text and the questions."""

from pathlib import Path

from pruneflow.artifacts import verify_manifest
from pruneflow.measure.evaluation_record import EvaluatedModel, Evaluation, TaskAnswers
from pruneflow.measure.perplexity import perplexity_by_domain, with_bytes
from pruneflow.models.digests import tokenizer_digest, weight_file_bytes
from pruneflow.models.loading import load_model
from pruneflow.models.round_record import read_round_record
from pruneflow.models.structure import sizes_of
from pruneflow.questions.answers import answer_questions
from pruneflow.settings.pipeline import ComputeSettings
from pruneflow.tokens.calibration_set import CalibrationSet


def measure_model(
    directory: Path, held_out: Path, questions_dir: Path, compute: ComputeSettings, label: str
) -> Evaluation:
    """Measure perplexity by domain and the accuracy on every task.

    Args:
        directory: a model directory with its ``round.json``, verified before it is loaded.
        held_out: windows that no model is calibrated on (stage ``calibration``).
        questions_dir: tasks and their questions (stage ``questions``).
        compute: device, data type and tokens in one pass.
        label: names the work on progress bars.

    Raises:
        InputError: the windows are of another tokenizer, or the model gives NaN or infinity.
        DamagedArtifactError: a file does not match its manifest or record.
    """
    written_for = tokenizer_digest(directory)
    chosen = CalibrationSet.load(held_out, written_for)
    asked = verify_manifest(questions_dir)
    network, tokenizer = load_model(directory, compute)
    record = read_round_record(directory)
    windows = chosen.blocks["test"]
    losses = perplexity_by_domain(network, windows, compute.batch_tokens, f"{label} perplexity")
    answers = answer_questions(
        network, tokenizer, questions_dir, compute.batch_tokens, f"{label} questions"
    )
    return Evaluation(
        model=EvaluatedModel(
            digest=str(record.digest),
            delivered_digest=record.delivered_digest,
            recovery=record.recovery,
            bytes=weight_file_bytes(directory),
            **dict(sizes_of(network)),
        ),
        perplexity=with_bytes(losses, windows, tokenizer),
        tasks={name: TaskAnswers.model_validate(found) for name, found in answers.items()},
        tokenizer=written_for,
        held_out=chosen.digest,
        questions=asked["digest"],
        dtype=str(network.dtype).removeprefix("torch."),
    )
