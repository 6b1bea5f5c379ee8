"""One function per stage of dvc.yaml: settings and files in, files out.

`python -m pruneflow stage NAME` runs one of them under the workspace's lock. Stages read each
other's outputs and configs/, and write nothing else.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import (
    read_json,
    staged_directory,
    staged_file,
    verify_manifest,
    write_json,
)
from pruneflow.config import DENSE, PipelineSettings, load_settings
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.record import read_record, write_record
from pruneflow.workspace import stage_lock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOMAINS_FILE = Path("configs/domains.yaml")
LM_EVAL = Path("configs/lm_eval")
SOURCES_LOCK = Path("data/sources.lock")
BENCHMARKS = Path("data/benchmarks")
DOCUMENTS = Path("data/calibration/documents")
VALIDATION = Path("data/calibration/validation.json")
CALIBRATION_SET = Path("data/calibration/set")
HELD_OUT = Path("data/calibration/held_out")
CHECKPOINTS = Path("data/checkpoints")
MODEL = Path("data/model")
REPORTS = Path("data/reports")
BASELINE = REPORTS / "baseline.json"
EVALUATION = REPORTS / "evaluation.json"
LATENCY = REPORTS / "latency.json"
SUMMARY = REPORTS / "summary.json"
PAGE = REPORTS / "report.html"
CARD = REPORTS / "model_card.md"

# Beside the model, in a folder of its own: serving engines read every *.safetensors they find.
STATISTICS = "statistics"


def run_stage_by_name(name: str) -> None:
    """Run one stage, as dvc.yaml names it (``round@r2`` is round r2).

    Raises:
        InputError: there is no such stage, or the stage's input cannot be used.
    """
    stage, _, argument = name.partition("@")
    if stage == "round" and argument:
        action: Callable[[PipelineSettings], None] = lambda settings: prune(settings, argument)  # noqa: E731
    elif stage in STAGES and not argument:
        action = STAGES[stage]
    else:
        raise InputError(f"there is no stage {name}: use {', '.join(STAGES)} or round@NAME")
    with stage_lock(name):
        action(load_settings())


def model(settings: PipelineSettings) -> None:
    """Write the dense model as an ordinary directory: data/checkpoints/dense."""
    import torch

    from pruneflow.models.export import save
    from pruneflow.models.loading import check_source, load_source, model_digest
    from pruneflow.models.structure import layers_of

    check_source(settings.model)
    with staged_directory(CHECKPOINTS / DENSE) as directory:
        dense, tokenizer = load_source(settings.model)
        save(dense, tokenizer, directory, getattr(torch, settings.model.dtype))
        digest = model_digest(directory)
        sizes = _sizes(dense)
        write_record(
            directory,
            round=DENSE,
            status="done",
            delivered=DENSE,
            delivered_digest=digest,
            digest=digest,
            dense={
                "digest": digest,
                "block_weights": sizes["block_weights"],
                "neurons": layers_of(dense)[0].neurons,
            },
            source=settings.model.source,
            revision=settings.model.revision,
            **sizes,
        )


def questions(settings: PipelineSettings) -> None:
    """Write the evaluation questions as local files: data/benchmarks."""
    from pruneflow.calibration.questions import build_questions

    chosen = settings.evaluation
    build_questions(chosen.tasks, chosen.questions, chosen.seed, LM_EVAL, SOURCES_LOCK, BENCHMARKS)


def documents(settings: PipelineSettings) -> None:
    """Draw the table of documents: data/calibration/documents."""
    from pruneflow.calibration.documents import build_documents

    build_documents(
        settings.documents, DOMAINS_FILE, SOURCES_LOCK, BENCHMARKS, DOCUMENTS, Path.cwd()
    )


def validate(settings: PipelineSettings) -> None:
    """Check the table with Great Expectations: data/calibration/validation.json."""
    from pruneflow.calibration.validation import validate_documents

    validate_documents(DOCUMENTS, BENCHMARKS, settings.documents, VALIDATION)


def calibration(settings: PipelineSettings) -> None:
    """Pack tokens: data/calibration/set and data/calibration/held_out."""
    from pruneflow.calibration.blocks import build_blocks
    from pruneflow.models.loading import load_tokenizer, tokenizer_digest

    checked = read_json(VALIDATION)
    if checked["documents"] != verify_manifest(DOCUMENTS)["digest"]:
        raise DamagedArtifactError(
            f"{VALIDATION} is about other documents than {DOCUMENTS}: run `dvc repro validate`"
        )
    dense = CHECKPOINTS / DENSE
    build_blocks(
        settings.calibration,
        settings.documents,
        DOCUMENTS,
        load_tokenizer(dense),
        tokenizer_digest(dense),
        CALIBRATION_SET,
        HELD_OUT,
    )


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
    from pruneflow.models.loading import load_model, model_digest, tokenizer_digest
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
    # What is measured is what is stored: weights are rounded to the stored type first.
    save(result.model, tokenizer, directory, getattr(torch, settings.model.dtype))
    result.model.to(getattr(torch, settings.compute.dtype))
    losses = {"dense": dense_losses}
    try:
        losses["pruned"] = validate_model(result.model, f"{name} validation")
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
        **_sizes(result.model),
    )


def baseline(settings: PipelineSettings) -> None:
    """Evaluate the dense model, once: data/reports/baseline.json."""
    _evaluate(settings, CHECKPOINTS / DENSE, BASELINE, "dense")


def select(settings: PipelineSettings) -> None:
    """Copy the round that the descent delivers to data/model."""
    from pruneflow.models.loading import model_digest

    last = read_record(CHECKPOINTS / settings.final_round)
    source = CHECKPOINTS / last["delivered"]
    if not source.is_dir() or model_digest(source) != last["delivered_digest"]:
        raise DamagedArtifactError(
            f"{source} is not the model that {settings.final_round} delivers: delete it and run "
            "`dvc repro`"
        )
    with staged_directory(MODEL) as directory:
        for path in sorted(source.iterdir()):
            if path.is_file():
                shutil.copy2(path, directory / path.name)


def evaluation(settings: PipelineSettings) -> None:
    """Evaluate the delivered model: data/reports/evaluation.json."""
    _evaluate(settings, MODEL, EVALUATION, "pruned")


def _evaluate(settings: PipelineSettings, directory: Path, out: Path, label: str) -> None:
    from pruneflow.calibration.blocks import CalibrationSet
    from pruneflow.evaluation.benchmarks import answer_questions
    from pruneflow.evaluation.perplexity import perplexity_by_domain
    from pruneflow.models.loading import load_model, tokenizer_digest, weight_bytes

    held_out = CalibrationSet.load(HELD_OUT, tokenizer_digest(directory))
    asked = verify_manifest(BENCHMARKS)
    network, tokenizer = load_model(directory, settings.compute)
    batch_tokens = settings.compute.batch_tokens
    write_json(
        out,
        {
            "model": {
                "digest": read_record(directory)["digest"],
                "bytes": weight_bytes(directory),
                **_sizes(network),
            },
            "perplexity": perplexity_by_domain(
                network, held_out.blocks["test"], batch_tokens, f"{label} perplexity"
            ),
            "tasks": answer_questions(
                network,
                tokenizer,
                settings.evaluation.tasks,
                BENCHMARKS,
                LM_EVAL,
                batch_tokens,
                f"{label} questions",
            ),
            "held_out": held_out.digest,
            "benchmarks": asked["digest"],
            "dtype": settings.compute.dtype,
        },
    )


def latency(settings: PipelineSettings) -> None:
    """Measure speed and memory, and load in a fresh process: data/reports/latency.json."""
    from pruneflow.evaluation.latency import measure_latency

    measured = measure_latency(CHECKPOINTS / DENSE, MODEL, settings.latency, settings.compute)
    write_json(LATENCY, measured)


def report(settings: PipelineSettings) -> None:
    """Write what people and gates read: report.html, summary.json, model_card.md."""
    from pruneflow.reporting.model_card import render_card
    from pruneflow.reporting.page import render_page
    from pruneflow.reporting.summary import build_summary

    rounds = [read_record(CHECKPOINTS / name) for name in settings.rounds]
    drawn = verify_manifest(DOCUMENTS)
    summary = build_summary(
        read_json(BASELINE),
        read_json(EVALUATION),
        read_json(LATENCY),
        rounds,
        settings,
        verify_manifest(CALIBRATION_SET),
        drawn,
    )
    texts = {PAGE: render_page(summary, rounds, drawn), CARD: render_card(summary)}
    for path, text in texts.items():
        with staged_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(SUMMARY, summary)


def _sizes(network: "PreTrainedModel") -> dict[str, Any]:
    from pruneflow.models.structure import block_weights, layers_of, parameters

    layers = layers_of(network)
    return {
        "parameters": parameters(network),
        "block_weights": block_weights(network),
        "widths": {
            "neurons": [layer.neurons for layer in layers],
            "kv_groups": [layer.kv_groups for layer in layers],
        },
    }


STAGES: dict[str, Callable[[PipelineSettings], None]] = {
    "model": model,
    "questions": questions,
    "documents": documents,
    "validate": validate,
    "calibration": calibration,
    "baseline": baseline,
    "select": select,
    "evaluation": evaluation,
    "latency": latency,
    "report": report,
}
