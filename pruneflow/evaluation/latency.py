"""Speed of dense and pruned model side by side, and memory and reload proof of each alone."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.config import ComputeSettings, LatencySettings
from pruneflow.errors import InputError
from pruneflow.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

RELOAD = Path(__file__).with_name("reload.py")
RELOAD_TOKENS = 24
RELOAD_TIMEOUT = 1800  # seconds; loading a large model from a slow disk takes minutes


def measure_latency(
    dense: Path, pruned: Path, settings: LatencySettings, compute: ComputeSettings
) -> dict[str, Any]:
    """Time both models in turn, so that whatever else the machine does hits both alike.

    Each model is first loaded and run in a fresh process by plain transformers (see `reload.py`):
    its peak memory is measured there, always on the CPU.

    Args:
        dense: directory of the dense model.
        pruned: directory of the pruned model.
        settings: prompt length, decoded tokens and repeats.
        compute: device and data type.

    Returns:
        For ``dense`` and ``pruned``, each as ``{median, min, max}``: ``prefill`` and ``decode`` in
        tokens per second, and ``first_token`` in seconds. ``speedup`` holds the same of the paired
        ratios (above 1: the pruned model is faster). ``bytes`` of weights on disk, ``memory`` in
        bytes, ``reload`` of the pruned model (``ok``, ``text``, ``reason``) and the circumstances.

    Raises:
        InputError: a directory is no model, the dense one does not reload, or the prompt does not
            fit the model's context.
    """
    from pruneflow.models.loading import load_model, weight_bytes

    alone = {
        name: reload_alone(directory, compute.dtype)
        for name, directory in track([("dense", dense), ("pruned", pruned)], "reload")
    }
    if not alone["dense"]["ok"]:
        raise InputError(f"the dense model {dense} does not reload: {alone['dense']['reason']}")
    models = {}
    for name, directory in (("dense", dense), ("pruned", pruned)):
        models[name], _ = load_model(directory, compute)
        models[name].eval()
    _confirm_first_token(models["pruned"], alone["pruned"])
    runs = _time_in_turn(models, settings)
    return {
        "dense": {measure: _spread(values) for measure, values in runs["dense"].items()},
        "pruned": {measure: _spread(values) for measure, values in runs["pruned"].items()},
        "speedup": _speedup(runs),
        "bytes": {"dense": weight_bytes(dense), "pruned": weight_bytes(pruned)},
        "memory": {name: result["memory"] for name, result in alone.items()},
        "reload": {key: alone["pruned"][key] for key in ("ok", "text", "reason")},
        **_circumstances(models["dense"], settings, compute),
    }


def reload_alone(directory: Path, dtype: str) -> dict[str, Any]:
    """Load a model directory in a process that cannot import this project, and let it write.

    Returns:
        ``ok``; ``reason`` when it is not; ``text`` that follows the prompt, ``prompt_ids`` and
        ``ids``, and ``memory`` (``before`` loading and ``peak``, bytes). All but the first two are
        None when the process failed.
    """
    result = isolated(RELOAD, str(directory.resolve()), dtype, str(RELOAD_TOKENS))
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return {
            **dict.fromkeys(("text", "prompt_ids", "ids", "memory")),
            "ok": False,
            "reason": lines[-1],
        }
    report = json.loads(result.stdout.splitlines()[-1])
    problems = report.pop("problems")
    if not report["ids"]:
        problems.append("it generated nothing")
    return {**report, "ok": not problems, "reason": "; ".join(problems) or None}


def isolated(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a fresh isolated interpreter, in an empty directory, offline."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as empty:
        try:
            return subprocess.run(
                [sys.executable, "-I", str(script.resolve()), *arguments],
                cwd=empty,
                env=environment,
                capture_output=True,
                text=True,
                timeout=RELOAD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(
                [], 1, "", f"no answer within {RELOAD_TIMEOUT} seconds"
            )


def _confirm_first_token(model: "PreTrainedModel", alone: dict[str, Any]) -> None:
    """Fail the reload when it continues with a token that this process finds improbable.

    Clean keys do not prove equal behaviour: a stale entry in config.json scrambles attention
    without a word. Among the five likeliest, not the likeliest: ties may break either way.
    """
    import torch

    if not alone["ok"]:
        return
    with torch.inference_mode():
        ids = torch.tensor([alone["prompt_ids"]], device=model.device)
        likeliest = model(input_ids=ids).logits[0, -1].float().topk(5).indices.tolist()
    if alone["ids"][0] not in likeliest:
        alone["ok"] = False
        alone["reason"] = "it continues with another token than the model in this process"


def _time_in_turn(
    models: "dict[str, PreTrainedModel]", settings: LatencySettings
) -> dict[str, dict[str, list[float]]]:
    """Time every model once per repeat, changing who goes first; the first round is not counted."""
    import torch

    some = models["dense"]
    needed = settings.prompt_tokens + settings.new_tokens
    context = getattr(some.config, "max_position_embeddings", None) or needed
    if needed > context:
        raise InputError(
            f"latency.prompt_tokens + latency.new_tokens are {needed}, and the model's context is "
            f"{context}: lower them"
        )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(
        some.config.vocab_size, (1, settings.prompt_tokens), generator=generator
    ).to(some.device)
    runs: dict[str, dict[str, list[float]]] = {
        name: {"prefill": [], "decode": [], "first_token": []} for name in models
    }
    names = list(models)
    for repeat in track(range(settings.repeats + 1), "latency"):
        for name in names if repeat % 2 else reversed(names):
            first, rest = _time_once(models[name], prompt, settings.new_tokens)
            if repeat > 0:
                runs[name]["prefill"].append(settings.prompt_tokens / first)
                runs[name]["decode"].append(settings.new_tokens / rest)
                runs[name]["first_token"].append(first)
    return runs


def _time_once(model: "PreTrainedModel", prompt: "Tensor", new_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token after `prompt`, and those of `new_tokens` more.

    Greedy, with a key-value cache, batch 1. Reading the token waits for the device.
    """
    import torch

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


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _speedup(runs: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Compare the two models repeat by repeat; above 1 the pruned model is faster."""
    speedup = {}
    for measure in runs["dense"]:
        pairs = list(zip(runs["dense"][measure], runs["pruned"][measure], strict=True))
        seconds = measure == "first_token"
        speedup[measure] = _spread(
            [dense / pruned if seconds else pruned / dense for dense, pruned in pairs]
        )
    return speedup


def _circumstances(
    model: "PreTrainedModel", settings: LatencySettings, compute: ComputeSettings
) -> dict[str, Any]:
    import torch

    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": compute.dtype,
        **settings.model_dump(),
    }
