"""The machine of a benchmark: loading models, peak memory, timing, versions."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruneflow.models.loading import load_source
from pruneflow.settings.pipeline import ModelSettings


def load(source: str, dtype: str, device: str) -> tuple[Any, Any]:
    """Load the dense model and its tokenizer, from any `model.source`.

    On a GPU, float32 products use TF32. Older versions of transformers have no `GgufConfig` and
    always dequantise GGUF files.
    """
    model: Any
    try:
        model, tokenizer = load_source(ModelSettings(source=source, dtype=dtype))
    except (ImportError, AttributeError, TypeError):
        if not source.endswith(".gguf"):
            raise
        model, tokenizer = _load_gguf(Path(source), dtype)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    return model.to(device), tokenizer


def _load_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    where: dict[str, Any] = {"gguf_file": path.name}
    torch_dtype = getattr(torch, dtype)
    found: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch_dtype, **where)
    values = found.config.to_dict()
    values.pop("quantization_config", None)
    # The loaded model has a quantisation config: copy its weights into a model without one.
    model: Any = type(found)(type(found.config).from_dict(values))
    for parameter in model.parameters():  # buffers stay float32: rotary frequencies
        parameter.data = parameter.data.to(torch_dtype)
    model.load_state_dict(found.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    return model.eval().requires_grad_(False), tokenizer


def reset_peak() -> None:
    """Reset the peak memory statistics."""
    if torch.cuda.is_available():
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float | None:
    """Peak memory since `reset_peak`: of the fullest GPU, else of the process (Linux only)."""
    if torch.cuda.is_available():
        held = map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))
        return round(max(held) / 2**30, 2)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return round(int(line.split()[1]) / 2**20, 2)


def now(device: str) -> float:
    """The time after the device has finished all its work."""
    if device == "cuda":
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.synchronize(gpu)
    return time.perf_counter()


def product_rate(device: str, dtype: str, side: int) -> float:
    """Operations per second of a product of two square matrices, the best of six runs."""
    square = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    seconds = []
    for _ in range(6):
        started = now(device)
        torch.matmul(square, square)
        seconds.append(now(device) - started)
    return float(2 * side**3 / min(seconds))


def machine(device: str) -> dict[str, Any]:
    """Name of the device, number of cores and versions of the libraries."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "numpy", "optipfair", "torch-pruning", "fmchisel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    facts = {"versions": versions, "device": name, "cores": os.cpu_count()}
    return {**facts, "matmul": "tf32"} if device == "cuda" else facts
