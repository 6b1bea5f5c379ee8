"""Tiny models and workspaces that every suite shares."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# DVC's log handlers keep the stderr of its import, which must not be one that a test closes.
import dvc  # noqa: F401
import pytest
from hypothesis import settings

# The same examples in every run: a failure found at random belongs in its own test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Before torch is imported: more threads slow such small models down, and stages in this process and
# in their own processes then produce the same bytes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent

# Every supported family, small: 6 heads of 4 channels, in 3 KV groups where it has groups, biases,
# extra norms, sliding windows and soft caps where it has them.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 6, "sliding_window": 8},
    "gemma3_text": {
        "query_pre_attn_scalar": 6,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"sliding_window": 12},
    "opt": {},
    "gpt2": {},
    "gpt_neox": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
}
# Without KV groups, each head has its own keys and values; some fields have other names.
WITHOUT_GROUPS = ("opt", "gpt2", "gpt_neox")
FIELDS = {
    "opt": {"intermediate_size": "ffn_dim", "initializer_range": "init_std"},
    "gpt2": {"intermediate_size": "n_inner"},
}


# A family and its head counts: as above, one KV group a head, one KV group for all, and the
# proportions of Llama 3 (hidden size a power of two, 8 groups) and Gemma (heads wider than it).
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    **{
        f"{family}-{name}": (family, {"num_key_value_heads": groups})
        for family in FAMILIES
        if family not in WITHOUT_GROUPS
        for name, groups in (("mha", 6), ("mqa", 1))
    },
    "llama-3": (
        "llama",
        {"hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4},
    ),
    "gemma2-wide": (
        "gemma2",
        {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
    ),
}


def all_heads(layer: Any) -> Any:
    """Indices of the query heads, one row per KV group."""
    import torch

    return torch.arange(layer.heads).view(layer.kv_groups, layer.heads_per_group)


def sequence_losses(model: Any, tokens: Any) -> Any:
    """Mean negative log-likelihood of each sequence's tokens after its first, ``[n]``."""
    from pruneflow.pruning.token_losses import losses_of

    return losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)[1].mean(1)


# Minutes each: begun first, so that no process is left alone with one of them at the end.
LONGEST = (
    "test_golden_run",
    "test_crash_safety",
    "test_damage",
    "test_golden_tiny",
    "test_services",
    "test_default_domains",
    "test_own_model",
    "test_lm_eval_agreement",
)


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collection: each would go over it for half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let libraries clean up after themselves at the end."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first, and leave the order of the others as it is."""
    items.sort(key=lambda item: not item.path.stem.startswith(LONGEST))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """Make a random model of a family, float64 so that equalities are sharp."""
    import torch

    def make(family: str = "llama", **changes: Any) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        values: dict[str, Any] = {
            "vocab_size": 97,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 4,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": 1,
            **FAMILIES[family],
            **changes,
        }
        if family in WITHOUT_GROUPS:
            values.pop("num_key_value_heads")
            values.pop("head_dim")
        values = {FIELDS.get(family, {}).get(key, key): value for key, value in values.items()}
        config = AutoConfig.for_model(family, **values)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.double)
        model = model.eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tiny_tokens() -> Any:
    """Token ids for two domains, ``[sequences, tokens]``."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, 97, (6, 16), generator=generator) for name in ("prose", "code")}


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer trained in a moment on the licence, a text that does not change."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(ROOT / "LICENSE").read_text() + "text" * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture
def tiny_model_directory(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> Path:
    """An ordinary model directory, as a user would have it."""
    directory = tmp_path / "tiny-model"
    model = tiny_model(vocab_size=400).float()
    model.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def real_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the real graph and configs, and no data yet."""
    from dvc.repo import Repo

    folder = tmp_path / "workspace"
    for name in ("configs", "pruneflow", "mlflow", "flows", "tasks"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "artifacts", "*.db*", "pipeline.yaml"),
        )
    (folder / "data").mkdir()
    shutil.copytree(ROOT / "data/text", folder / "data/text")
    shutil.copy(ROOT / "data/sources.lock", folder / "data/sources.lock")
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    Repo.init(str(folder), no_scm=True).close()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """We are in a project folder that is configured, with nothing run yet."""
    from pruneflow.plan import configure

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "data").mkdir()
    for name in ("dvc.yaml", "prefect.yaml", "data/sources.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    configure("demo")
    return tmp_path
