"""One function per stage of dvc.yaml: settings and files in, files out.

`python -m pruneflow stage NAME` runs one of them under the workspace's lock. Stages read each
other's outputs and configs/, and write nothing else. Each imports what it needs itself:
`environment`, which every `dvc repro` runs, must not wait for torch.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from pruneflow.artifacts import (
    read_json,
    staged_directory,
    staged_file,
    verify_manifest,
    write_json,
)
from pruneflow.compute.torchrun import is_first, is_launched
from pruneflow.environment import installed_versions
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.paths import (
    BASELINE,
    CALIBRATION_SET,
    CARD,
    CHECKPOINTS,
    DATA_CARD,
    DOCUMENTS,
    DOMAINS_FILE,
    ENVIRONMENT,
    EVALUATION,
    GATES_FILE,
    HELD_OUT,
    LATENCY,
    LM_EVAL,
    METRICS,
    MODEL,
    PAGE,
    PLOTS,
    QUESTIONS,
    SOURCES_LOCK,
    STATISTICS,
    SUMMARY,
    VALIDATION,
)
from pruneflow.records import read_record, write_record
from pruneflow.settings.pipeline import DENSE, PipelineSettings, load_settings
from pruneflow.workspace import stage_lock


def run_stage_by_name(name: str) -> int:
    """Run one stage, as dvc.yaml names it (``round@r2`` is round r2).

    The ranks that `torchrun` or the setting compute.processes starts share a round; only the first
    rank runs the other stages.

    Returns:
        0, or the exit code of ranks that failed and have reported why.

    Raises:
        InputError: there is no such stage, or the stage's input cannot be used.
    """
    stage, _, argument = name.partition("@")
    if stage == "round" and argument:
        action: Callable[[PipelineSettings], None] = partial(round_, name=argument)
    elif stage in STAGES and not argument:
        action = STAGES[stage]
    else:
        raise InputError(f"there is no stage {name}: use {', '.join(STAGES)} or round@NAME")
    processes = _processes() if stage == "round" and not is_launched() else 1
    if processes > 1:
        from pruneflow.compute.ranks import launch

        return launch(processes, "-m", "pruneflow", "stage", name)
    if is_first() or stage == "round":
        with stage_lock(name) if is_first() else nullcontext(), _memory_is_enough():
            action(load_settings())
    return 0


@contextmanager
def _memory_is_enough() -> Iterator[None]:
    """Turn a GPU that runs out of memory into one clear line."""
    try:
        yield
    except RuntimeError as error:
        if "CUDA" not in str(error) or "out of memory" not in str(error):
            raise  # of more than one class, where the GPU is full from the start
        raise InputError(
            "the GPU's memory is full: in configs/pipeline.yaml halve compute.batch_tokens and "
            "compute.backward_batch_tokens, or set compute.placement to streamed (or, with "
            "several GPUs, spread)"
        ) from None


def _processes() -> int:
    """How many processes share a round; the stage itself reports settings that cannot be read."""
    try:
        return load_settings().compute.processes
    except InputError:
        return 1


def environment(settings: PipelineSettings) -> None:
    """Write the installed versions that other stages depend on: data/environment.json."""
    write_json(ENVIRONMENT, installed_versions())


def model(settings: PipelineSettings) -> None:
    """Write the dense model as an ordinary directory: data/checkpoints/dense."""
    import torch

    from pruneflow.models.digests import model_digest
    from pruneflow.models.export import save
    from pruneflow.models.loading import load_source
    from pruneflow.models.round_record import RoundRecord, write_round_record
    from pruneflow.models.structure import dense_reference, sizes_of
    from pruneflow.report.directory_card import write_card

    dense, tokenizer = load_source(settings.model)
    with staged_directory(CHECKPOINTS / DENSE) as directory:
        save(dense, tokenizer, directory, getattr(torch, settings.model.dtype))
        digest = model_digest(directory)
        record = RoundRecord(
            round=DENSE,
            status="done",
            source=settings.model.source,
            revision=settings.model.revision,
            digest=digest,
            delivered=DENSE,
            delivered_digest=digest,
            dense=dense_reference(dense, digest),
            **dict(sizes_of(dense)),
        )
        write_round_record(directory, record)
        write_card(directory, record, settings.model)


def questions(settings: PipelineSettings) -> None:
    """Write the evaluation questions as local files: data/questions."""
    from pruneflow.questions.question_set import build_questions

    chosen = settings.evaluation
    build_questions(chosen.tasks, chosen.seed, LM_EVAL, SOURCES_LOCK, QUESTIONS)


def documents(settings: PipelineSettings) -> None:
    """Draw the table of documents: data/calibration/documents."""
    from pruneflow.data.documents import build_documents

    build_documents(
        settings.documents, DOMAINS_FILE, SOURCES_LOCK, QUESTIONS, DOCUMENTS, Path.cwd()
    )


def validate(settings: PipelineSettings) -> None:
    """Check the table with Great Expectations: data/calibration/validation.json."""
    from pruneflow.data.validation import validate_documents

    validate_documents(DOCUMENTS, QUESTIONS, settings.documents, VALIDATION)


def calibration(settings: PipelineSettings) -> None:
    """Pack tokens: data/calibration/set and data/calibration/held_out."""
    from pruneflow.models.digests import tokenizer_digest
    from pruneflow.models.loading import context_length, load_tokenizer
    from pruneflow.tokens.calibration_set import build_blocks

    checked = read_json(VALIDATION)
    if checked["documents"] != verify_manifest(DOCUMENTS)["digest"]:
        raise DamagedArtifactError(
            f"{VALIDATION} is about other documents than {DOCUMENTS}: run `dvc repro validate`"
        )
    dense = CHECKPOINTS / DENSE
    build_blocks(
        settings.calibration,
        settings.documents.domains,
        DOCUMENTS,
        load_tokenizer(dense),
        tokenizer_digest(dense),
        CALIBRATION_SET,
        HELD_OUT,
        settings.recovery,
        context_length(dense),
    )


def baseline(settings: PipelineSettings) -> None:
    """Evaluate the dense model, once: data/reports/baseline.json."""
    _evaluate(settings, CHECKPOINTS / DENSE, BASELINE, "dense")


def round_(settings: PipelineSettings, name: str) -> None:
    """Do one pruning round: data/checkpoints/NAME."""
    from pruneflow.round_stage import run_round

    run_round(settings, name)


def select(settings: PipelineSettings) -> None:
    """Write the delivered round's model to data/model, recovered where the settings ask for it."""
    from pruneflow.models.digests import model_digest
    from pruneflow.models.round_record import read_round_record
    from pruneflow.recovery_stage import recover_round

    last = read_round_record(CHECKPOINTS / settings.final_round)
    source = CHECKPOINTS / last.delivered
    if not source.is_dir() or model_digest(source) != last.delivered_digest:
        raise DamagedArtifactError(
            f"{source} is not the model that {settings.final_round} delivers: delete it and run "
            "`dvc repro`"
        )
    if settings.recovery.token_budget:
        recover_round(settings, source, MODEL)
        return
    with staged_directory(MODEL) as directory:
        without = shutil.ignore_patterns(STATISTICS)
        shutil.copytree(source, directory, ignore=without, dirs_exist_ok=True)


def evaluation(settings: PipelineSettings) -> None:
    """Evaluate the delivered model: data/reports/evaluation.json."""
    _evaluate(settings, MODEL, EVALUATION, "pruned")


def _evaluate(settings: PipelineSettings, directory: Path, out: Path, label: str) -> None:
    from pruneflow.measure.evaluation import measure_model

    write_record(out, measure_model(directory, HELD_OUT, QUESTIONS, settings.compute, label))


def latency(settings: PipelineSettings) -> None:
    """Measure speed and memory, and load the model alone: data/reports/latency.json."""
    from pruneflow.measure.deployment import lm_eval_command, lm_eval_task
    from pruneflow.measure.latency import measure_latency
    from pruneflow.measure.latency_record import Latency
    from pruneflow.models.loading import resolve_device, resolve_dtype

    verify_manifest(QUESTIONS)
    task = lm_eval_task(settings.evaluation.tasks, QUESTIONS)
    compute, asked = settings.compute, settings.latency.lm_eval_questions
    measured = measure_latency(CHECKPOINTS / DENSE, MODEL, settings.latency, compute)
    answers = lm_eval_command(
        MODEL,
        QUESTIONS,
        task,
        asked,
        resolve_dtype(compute, MODEL),
        resolve_device(compute),
        fits=measured.placement.pruned == "whole",
    )
    write_record(LATENCY, Latency(**dict(measured), lm_eval=answers))


def report(settings: PipelineSettings) -> None:
    """Write the report, summary.json, the cards, and the plots and metrics of DVC."""
    from pruneflow.judge.freshness import json_digest
    from pruneflow.judge.gates import load_gates
    from pruneflow.judge.summary import ReportDigests, build_summary
    from pruneflow.measure.evaluation_record import Evaluation
    from pruneflow.measure.latency_record import Latency
    from pruneflow.models.round_record import read_round_record
    from pruneflow.report.data_card import render_data_card
    from pruneflow.report.dvc_plots import headline, series
    from pruneflow.report.model_card import render_card
    from pruneflow.report.page import Sources, read_disagreement, render_page
    from pruneflow.report.verdict import rule

    gates = load_gates(GATES_FILE)
    rounds = [read_round_record(CHECKPOINTS / name) for name in settings.rounds]
    drawn, chosen = verify_manifest(DOCUMENTS), verify_manifest(CALIBRATION_SET)
    held_out, checked = verify_manifest(HELD_OUT), read_json(VALIDATION)
    summary = build_summary(
        read_record(Evaluation, BASELINE),
        read_record(Evaluation, EVALUATION),
        read_record(Latency, LATENCY),
        rounds,
        settings,
        chosen,
        drawn,
        ReportDigests(
            baseline=json_digest(BASELINE),
            evaluation=json_digest(EVALUATION),
            latency=json_digest(LATENCY),
        ),
    )
    sources = Sources(
        read_round_record(CHECKPOINTS / DENSE),
        rounds,
        read_disagreement(CHECKPOINTS / summary.model.delivered),
        drawn,
        chosen,
        checked,
        settings,
    )
    texts = {
        PAGE: render_page(summary, sources, rule(summary, gates)),
        CARD: render_card(summary, settings.model),
        DATA_CARD: render_data_card(drawn, chosen, held_out, checked),
    }
    for path, text in texts.items():
        with staged_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with staged_directory(PLOTS) as directory:
        for name, points in series(summary, rounds).items():
            write_json(directory / f"{name}.json", points)
    write_json(METRICS, headline(summary))
    write_record(SUMMARY, summary)


STAGES: dict[str, Callable[[PipelineSettings], None]] = {
    "environment": environment,
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
