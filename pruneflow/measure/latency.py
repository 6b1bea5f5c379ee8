"""Speed of the dense and the pruned model, timed in turn; memory and reload test of each alone."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from scipy.stats import quantile_test
from torch import Tensor
from transformers import PreTrainedModel

from pruneflow.compute.placement import (
    free_memory,
    place,
    place_by_settings,
    placement_of,
    tensor_bytes,
)
from pruneflow.compute.ranks import own_gpus
from pruneflow.errors import InputError
from pruneflow.measure.deployment import FreshProcess, disk_usage, reload_isolated, slow_widths
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
from pruneflow.models.loading import load_model, resolve_device, resolve_dtype
from pruneflow.progress import track
from pruneflow.settings.pipeline import ComputeSettings, LatencySettings

CONFIDENCE = 0.95

BUSY = 0.1  # share of the threads' time spent waiting for a CPU

ROOM = 0.9  # share of a GPU's free memory for weights; only one sequence is processed

Turn = Callable[[str], AbstractContextManager[Any]]


def measure_latency(
    dense: Path, pruned: Path, settings: LatencySettings, compute: ComputeSettings
) -> Deployment:
    """Time both models in turn, so that other load on the machine affects both alike.

    Each model is first loaded and run in a fresh process by plain transformers (see `reload.py`),
    where its peak memory is measured: always on the CPU, and on a GPU if one is used and the model
    fits. Models that do not fit on the GPU together are moved there in turn, and one that does not
    fit alone is spread or streamed, with a warning.

    Args:
        dense: directory of the dense model.
        pruned: directory of the pruned model.
        settings: prompt length, decoded tokens, repeats, and the multiple of good widths.
        compute: device and data type.

    Raises:
        InputError: a directory is not a model, the dense one does not reload, or the prompt does
            not fit in the model's context.
    """
    device, dtype = resolve_device(compute), resolve_dtype(compute, dense)
    directories = {"dense": dense, "pruned": pruned}
    alone = {
        name: reload_isolated(directory, dtype, device)
        for name, directory in track(list(directories.items()), "reload")
    }
    if alone["dense"].problems:
        reason = "; ".join(alone["dense"].problems)
        raise InputError(f"the dense model {dense} does not reload: {reason}")
    with Turns(directories, compute.model_copy(update={"dtype": dtype})) as turns:
        models = turns.models
        with turns.turn("pruned") as model:
            alone["pruned"] = _confirm_first_token(model, alone["pruned"])
        before = run_queue()
        runs = time_in_turn(models, settings, None if turns.together else turns.turn)
        after = run_queue()
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
        **{
            **settings.model_dump(exclude={"precision", "max_seconds"}),
            "repeats": len(runs["dense"]["decode"]),
        },
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
            *_load_warnings(before, after),
        ],
    )


def run_queue() -> tuple[int, int] | None:
    """Nanoseconds that this process's threads have run and waited for a CPU; None off Linux.

    Source: proc_pid_schedstat(5), summed over threads.
    """
    ran = waited = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            fields = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    except (OSError, ValueError, IndexError):
        return None
    return ran, waited


def _load_warnings(before: tuple[int, int] | None, after: tuple[int, int] | None) -> list[str]:
    """Warn where other processes kept this one from the CPU."""
    if before is None or after is None:
        return []
    ran, waited = after[0] - before[0], after[1] - before[1]
    share = waited / (ran + waited) if waited > 0 else 0.0
    if share <= BUSY:
        return []
    return [
        f"the machine was busy: threads waited for a CPU for {share:.0%} of their time, so speeds "
        "vary; run the stage latency again when nothing else is running"
    ]


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
    """Fail the reload if its first token is improbable in this process.

    Matching keys do not prove equal behaviour: a stale entry in config.json scrambles attention
    without an error. The token must be among the five most likely, because ties may break either
    way.
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
    """Pair both models' continuations of the same prompts."""
    return [
        SampleOutput(prompt=prompt, dense=text, pruned=pruned.answers.get(prompt))
        for prompt, text in dense.answers.items()
    ]


def time_in_turn(
    models: dict[str, PreTrainedModel], settings: LatencySettings, turn: Turn | None = None
) -> dict[str, dict[str, list[float]]]:
    """Time every model once per repeat, in alternating order; the first repeat is not counted.

    Repeats continue beyond `settings.repeats` until the intervals of the speed-ups are as narrow as
    `settings.precision`, or `settings.max_seconds` have passed.

    Args:
        models: by name; on the device where they are timed, unless `turn` is given.
        settings: prompt length, decoded tokens, repeats.
        turn: context manager that moves a model to the device for its turn. Every run is then
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
    started = time.perf_counter()

    def unsettled() -> Iterator[int]:
        """Count repeats until enough have been timed."""
        yield from range(settings.repeats + 1)
        for repeat in count(settings.repeats + 1):
            elapsed = time.perf_counter() - started
            if elapsed > settings.max_seconds or _settled(speedups(runs), settings.precision):
                return
            yield repeat

    for repeat in track(unsettled(), "latency", settings.repeats + 1):
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


class Turns:
    """Models to time in turn: together on the device if twice the first fits, else one at a time.

    Leaving ``with Turns(...) as turns`` frees the device.

    Args:
        directories: model directories by name; the first model is the largest.
        compute: device, data type and placement. With `auto`, a model that fits is `whole`.

    Attributes:
        models: by name, in evaluation mode; on the CPU outside their turns, unless `together`.
        together: whether all models stay on the device.
        placement: by name, where each was timed: ``whole``, ``spread`` or ``streamed``.
    """

    def __init__(self, directories: dict[str, Path], compute: ComputeSettings) -> None:
        self._device = resolve_device(compute)
        self.models: dict[str, PreTrainedModel] = {}
        self.together = self._device == "cpu"
        self.placement: dict[str, str] = {}
        self._compute = dict.fromkeys(directories, compute)
        on_host = compute.model_copy(update={"device": "cpu", "placement": "whole"})
        may_be_whole = self._device == "cuda" and compute.placement in ("auto", "whole")
        for name, directory in directories.items():
            model, _ = load_model(directory, on_host)
            if may_be_whole and not self.models:
                self.together = self._has_room(2 * tensor_bytes(model))
            if self.together:
                place(model, self._device)
            elif may_be_whole and self._has_room(tensor_bytes(model)):
                self._compute[name] = compute.model_copy(update={"placement": "whole"})
            self.models[name], self.placement[name] = model, placement_of(model)

    def _has_room(self, weights: int) -> bool:
        return weights <= ROOM * free_memory(own_gpus()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self._device == "cuda":
            for model in self.models.values():
                place(model, "cpu")
            free_memory(own_gpus()[0])

    @contextmanager
    def turn(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield a model on the device."""
        model = self.models[name]
        if self.together:
            yield model
            return
        place_by_settings(model, self._compute[name], self._device)
        self.placement[name] = placement_of(model)
        try:
            yield model
        finally:
            place(model, "cpu")


def _settled(speedup: Speed, precision: float) -> bool:
    """Whether the intervals reach at most this share of the median to either side."""
    return all(
        found["low"] is not None
        and found["high"] is not None
        and found["high"] - found["low"] <= 2 * precision * found["median"]
        for found in (speedup.prefill, speedup.decode)
    )


def _time_once(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token after `prompt`, and for `new_tokens` more.

    Greedy decoding with a key-value cache, batch size 1. Reading a token waits for the device.
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
    """Return the median, its exact 95 % interval, and the extremes.

    The ends of the interval are order statistics (W. J. Conover, Practical Nonparametric
    Statistics, 3rd ed., section 3.2). Fewer than 6 values give no interval.
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
