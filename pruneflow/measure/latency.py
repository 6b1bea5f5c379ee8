"""Speed of dense and pruned model in turn, and memory and a reload test of each alone."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from scipy.stats import quantile_test
from torch import Tensor
from transformers import PreTrainedModel

from pruneflow.errors import InputError
from pruneflow.measure.deployment import FreshProcess, disk_usage, reload_alone, slow_widths
from pruneflow.measure.latency_record import (
    Deployment,
    DiskUsages,
    Median,
    Memories,
    Placement,
    Reload,
    SampleOutput,
    Speed,
)
from pruneflow.measure.timed_models import Turns
from pruneflow.models.loading import resolve_device, resolve_dtype
from pruneflow.progress import track
from pruneflow.settings.pipeline import ComputeSettings, LatencySettings

CONFIDENCE = 0.95

Turn = Callable[[str], AbstractContextManager[Any]]


def measure_latency(
    dense: Path, pruned: Path, settings: LatencySettings, compute: ComputeSettings
) -> Deployment:
    """Time both models in turn, so that other load on the machine affects both alike.

    Each model is first loaded and run in a fresh process by plain transformers (see `reload.py`),
    where its peak memory is measured: always on the CPU, and on a GPU where one is used and holds
    it. Models that do not fit the GPU together are brought there in turn, and one that does not fit
    it alone is spread or streamed, with a warning.

    Args:
        dense: directory of the dense model.
        pruned: directory of the pruned model.
        settings: prompt length, decoded tokens, repeats, and the multiple of good widths.
        compute: device and data type.

    Raises:
        InputError: a directory is no model, the dense one does not reload, or the prompt does not
            fit the model's context.
    """
    device, dtype = resolve_device(compute), resolve_dtype(compute, dense)
    directories = {"dense": dense, "pruned": pruned}
    alone = {
        name: reload_alone(directory, dtype, device)
        for name, directory in track(list(directories.items()), "reload")
    }
    if alone["dense"].problems:
        reason = "; ".join(alone["dense"].problems)
        raise InputError(f"the dense model {dense} does not reload: {reason}")
    with Turns(directories, compute.model_copy(update={"dtype": dtype})) as turns:
        models = turns.models
        with turns.turn("pruned") as model:
            alone["pruned"] = _confirm_first_token(model, alone["pruned"])
        runs = time_in_turn(models, settings, None if turns.together else turns.turn)
    reloaded, placement = alone["pruned"], Placement(**turns.placement)
    return Deployment(
        dense=_speed(runs["dense"]),
        pruned=_speed(runs["pruned"]),
        speedup=speedups(runs),
        placement=placement,
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        dtype=str(models["dense"].dtype).removeprefix("torch."),
        **settings.model_dump(),
        bytes=DiskUsages(dense=disk_usage(dense), pruned=disk_usage(pruned)),
        memory=Memories(dense=alone["dense"].memory, pruned=reloaded.memory),
        reload=Reload(
            ok=not reloaded.problems,
            text=next(iter(reloaded.answers.values()), None),
            reason="; ".join(reloaded.problems) or None,
        ),
        answers=_sample_outputs(alone["dense"], reloaded),
        warnings=[
            *slow_widths(models["pruned"], settings.width_multiple),
            *_placement_warnings(placement),
        ],
    )


def _placement_warnings(placement: Placement) -> list[str]:
    """Warn about a speed-up between models that were not whole on one GPU."""
    dense, pruned = placement.dense, placement.pruned
    if dense == pruned == "whole":
        return []
    if dense == pruned:
        return [f"both models were timed {dense}, not whole on one GPU"]
    return [
        f"the dense model was timed {dense} and the pruned one {pruned}: the speed-up also "
        "reflects weight placement, not only model size"
    ]


def _confirm_first_token(model: PreTrainedModel, alone: FreshProcess) -> FreshProcess:
    """Fail the reload when it continues with a token that this process finds improbable.

    Clean keys do not prove equal behaviour: a stale entry in config.json scrambles attention
    without an error. Among the five most likely, not the most likely: ties may break either way.
    """
    if alone.problems:
        return alone
    with torch.inference_mode():
        ids = torch.tensor([alone.prompt_ids], device=model.device)
        likeliest = model(input_ids=ids).logits[0, -1].float().topk(5).indices.tolist()
    if alone.ids[0] in likeliest:
        return alone
    problem = "it continues with another token than the model in this process"
    return alone.model_copy(update={"problems": [problem]})


def _sample_outputs(dense: FreshProcess, pruned: FreshProcess) -> list[SampleOutput]:
    """Put both models' continuations of the same prompts side by side."""
    return [
        SampleOutput(prompt=prompt, dense=text, pruned=pruned.answers.get(prompt))
        for prompt, text in dense.answers.items()
    ]


def time_in_turn(
    models: dict[str, PreTrainedModel], settings: LatencySettings, turn: Turn | None = None
) -> dict[str, dict[str, list[float]]]:
    """Time every model once per repeat, in alternating order; the first repeat is not counted.

    Args:
        models: by name; where they are timed, unless there is a `turn`.
        settings: prompt length, decoded tokens, repeats.
        turn: brings the model of a name to where it is timed, for so long. There every run is
            preceded by one that is not counted, because memory is allocated again.
    """
    config = models["dense"].config
    needed = settings.prompt_tokens + settings.new_tokens
    context = getattr(config, "max_position_embeddings", None) or needed
    if needed > context:
        raise InputError(
            f"latency.prompt_tokens + latency.new_tokens are {needed}, and the model's context is "
            f"{context}: lower them"
        )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(config.vocab_size, (1, settings.prompt_tokens), generator=generator)
    runs: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": [], "first_token": []} for name in models
    }
    names = list(models)
    for repeat in track(range(settings.repeats + 1), "latency"):
        for name in names if repeat % 2 else reversed(names):
            model = models[name]
            with turn(name) if turn else nullcontext():
                here = prompt.to(model.device)
                if turn:
                    _time_once(model, here, 1)
                first, rest = _time_once(model, here, settings.new_tokens)
            if repeat > 0:
                runs[name]["prefill"].append(settings.prompt_tokens / first)
                runs[name]["decode"].append(settings.new_tokens / rest)
                runs[name]["first_token"].append(first)
    return runs


def _time_once(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token after `prompt`, and those of `new_tokens` more.

    Greedy, with a key-value cache, batch 1. Reading the token waits for the device.
    """
    with torch.inference_mode():
        start = time.perf_counter()
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(dim=-1)
        token.item()
        first = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(new_tokens):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(dim=-1)
            token.item()
        return first, time.perf_counter() - start


def _with_interval(values: Sequence[float]) -> Median:
    """Median, its exact 95 % interval, and the extremes.

    The interval's ends are two of the sorted values: the population median is below
    the k-th with the probability that fewer than k heads fall in as many tosses of a coin, whatever
    the distribution (W. J. Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).
    Fewer than 6 values give no interval.
    """
    ends = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "min": min(values),
        "max": max(values),
    }


def _speed(runs: dict[str, list[float]]) -> Speed:
    return Speed(**{measure: _with_interval(values) for measure, values in runs.items()})


def speedups(runs: dict[str, dict[str, list[float]]]) -> Speed:
    """Compare the two models repeat by repeat; above 1 the pruned model is faster."""
    ratios = {}
    for measure, of_dense in runs["dense"].items():
        pairs = zip(of_dense, runs["pruned"][measure], strict=True)
        seconds = measure == "first_token"
        ratios[measure] = [dense / pruned if seconds else pruned / dense for dense, pruned in pairs]
    return _speed(ratios)
