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
    """Measure perplexity by domain and accuracy by task.

    Args:
        directory: a model directory with its ``round.json``, verified before it is loaded.
        held_out: windows that are never calibrated on (stage ``calibration``).
        questions_dir: tasks and their questions (stage ``questions``).
        compute: device, data type and tokens in one forward pass.
        label: name on progress bars.

    Raises:
        InputError: the windows are from another tokenizer, or the model gives NaN or infinity.
        DamagedArtifactError: a file does not match its manifest or record.
    """
    digest = tokenizer_digest(directory)
    text = CalibrationSet.load(held_out, digest)
    questions = verify_manifest(questions_dir)
    model, tokenizer = load_model(directory, compute)
    record = read_round_record(directory)
    windows, batch_tokens = text.blocks["test"], compute.batch_tokens
    losses = perplexity_by_domain(model, windows, batch_tokens, f"{label} perplexity")
    answers = answer_questions(model, tokenizer, questions_dir, batch_tokens, f"{label} questions")
    return Evaluation(
        model=EvaluatedModel(
            digest=str(record.digest),
            delivered_digest=record.delivered_digest,
            recovery=record.recovery,
            bytes=weight_file_bytes(directory),
            **dict(sizes_of(model)),
        ),
        perplexity=with_bytes(losses, windows, tokenizer),
        tasks={name: TaskAnswers.model_validate(found) for name, found in answers.items()},
        tokenizer=digest,
        held_out=text.digest,
        questions=questions["digest"],
        dtype=str(model.dtype).removeprefix("torch."),
    )
