"""Digests of model directories: what identifies a model and a tokenizer. Without torch."""

from pathlib import Path

from pruneflow.artifacts import sha256_file, sha256_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
CONFIG_FILES = ("config.json", "generation_config.json")


def model_digest(directory: Path) -> str:
    """Digest of a model directory: weights, configuration, model file and tokenizer."""
    names = [*CONFIG_FILES, *TOKENIZER_FILES]
    paths = [directory / name for name in names if (directory / name).is_file()]
    paths += sorted(directory.glob("*.safetensors")) + sorted(directory.glob("*.index.json"))
    paths += sorted(directory.glob("*.py"))
    return sha256_json({path.name: sha256_file(path) for path in paths})


def tokenizer_digest(directory: Path) -> str:
    """Digest of a model directory's tokenizer files."""
    paths = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    return sha256_json({path.name: sha256_file(path) for path in paths})


def weight_file_bytes(directory: Path) -> int:
    """Bytes of the safetensors files of a model directory."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
