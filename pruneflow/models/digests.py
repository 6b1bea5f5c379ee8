"""Digests of model directories: what identifies a model and a tokenizer. Without torch."""

from pathlib import Path

from pruneflow.artifacts import sha256_file, sha256_json

# Of the pipeline, and about the model rather than part of it.
_OTHERS = ("README.md", "round.json", "statistics")
_WEIGHTS = (".safetensors", ".index.json", ".py")
_CONFIGS = ("config.json", "generation_config.json")


def model_digest(directory: Path) -> str:
    """Digest of a model directory: weights, configuration, model file and tokenizer.

    The model card, the round's record and its statistics are not covered.
    """
    return _digest(directory, _model_files(directory))


def tokenizer_digest(directory: Path) -> str:
    """Digest of a model directory's tokenizer files, chat templates included."""
    files = _model_files(directory)
    return _digest(
        directory,
        [path for path in files if path.name not in _CONFIGS and not path.name.endswith(_WEIGHTS)],
    )


def _model_files(directory: Path) -> list[Path]:
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).parts[0] not in _OTHERS
    ]


def _digest(directory: Path, paths: list[Path]) -> str:
    return sha256_json(
        {path.relative_to(directory).as_posix(): sha256_file(path) for path in paths}
    )


def weight_file_bytes(directory: Path) -> int:
    """Bytes of the safetensors files of a model directory."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
