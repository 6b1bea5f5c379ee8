"""Run alone in a fresh process: load a model with plain transformers and continue some texts.

``python -I reload.py DIRECTORY DTYPE NEW_TOKENS DEVICE`` prints one line of JSON. This file imports
nothing of this project, and prevents all other imports of it: any user can load the same model.
"""

import json
import sys
from pathlib import Path
from typing import Any

# Prompts of different kinds of text. The first tests the reload, all are sample outputs.
PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "Once upon a time",
    "def add(a, b):",
    "Two apples and three more apples are",
)
PROJECT = ("pruneflow", "flows", "tasks")


def forbid_project() -> None:
    """Make every import of this project fail, even if it is installed next to transformers."""
    for name in PROJECT:
        sys.modules[name] = None  # type: ignore[assignment]


def peak_memory() -> int:
    """Return the peak memory of this process in bytes.

    Linux keeps it in VmHWM, which restarts with each program. ``ru_maxrss``, used elsewhere, does
    not: a child starts from the memory of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reload(directory: str, dtype: str, new_tokens: int, device: str) -> dict[str, Any]:
    """Load `directory` and greedily continue PROMPTS on the CPU, and the first on a GPU `device`.

    Returns:
        ``prompt_ids`` and ``ids`` of the first continuation on the CPU; ``answers``: the
        continuation of each prompt; ``memory`` in bytes (``before`` loading and at its ``peak``;
        ``device_peak`` on the GPU, None without one or if the model does not fit); and
        ``problems``: missing, unexpected or mismatched keys, or an empty continuation.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = peak_memory()
    # Only a directory that brings a model file of its own (layout per_layer) needs to be trusted.
    config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    trust = "auto_map" in config
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        trust_remote_code=trust,
    )
    model, loading = loaded
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(str(key) for key in loading[kind])[:3])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if loading.get(kind)
    ]
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust)
    prompts = [tokenizer(text, return_tensors="pt") for text in PROMPTS]
    prompt_ids = prompts[0]["input_ids"][0].tolist()
    written = [
        model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ].tolist()
        for prompt in prompts
    ]
    if not written[0]:
        problems.append("it generated nothing")
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    peak, device_peak = peak_memory(), None
    if device == "cuda":
        try:
            first = prompts[0].to(device)
            model.to(device).generate(**first, max_new_tokens=new_tokens, do_sample=False)
            device_peak = torch.cuda.max_memory_allocated()
        except RuntimeError as error:  # of several classes if the GPU is full from the start
            if "out of memory" not in str(error):
                raise
    return {
        "answers": dict(zip(PROMPTS, texts, strict=True)),
        "prompt_ids": prompt_ids,
        "ids": written[0],
        "memory": {"before": before, "peak": peak, "device_peak": device_peak},
        "problems": problems,
    }


if __name__ == "__main__":
    forbid_project()
    print(json.dumps(reload(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
