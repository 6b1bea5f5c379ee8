"""Packed token blocks: what scores, refits and perplexity are computed on.

The documents of one domain and split form one stream of tokens with the end-of-text token
between documents; the stream is cut into blocks of equal length and what is left over at its
end is not used, so no block holds padding. Blocks are then drawn from the whole stream: one
long document does not fill the set.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import sha256_json, staged_directory, verify_manifest, write_manifest
from pruneflow.calibration.documents import read_documents
from pruneflow.config import CalibrationSettings, DocumentSettings
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.progress import track
from pruneflow.recovery.settings import RecoverySettings

if TYPE_CHECKING:
    import numpy
    import pandas
    import torch

BLOCKS = "blocks.safetensors"


@dataclass(frozen=True)
class CalibrationSet:
    """Token blocks by split and domain.

    Attributes:
        blocks: `blocks[split][domain]` is an int64 tensor [blocks, tokens].
        digest: sha256 over the files, from the manifest.
        manifest: counts, tokenizer and seed.
    """

    blocks: "dict[str, dict[str, torch.Tensor]]"
    digest: str
    manifest: dict[str, Any]

    @classmethod
    def load(cls, directory: Path, tokenizer_digest: str | None = None) -> "CalibrationSet":
        """Read a folder that `build_blocks` wrote, after checking its manifest.

        Args:
            directory: the folder.
            tokenizer_digest: of the model that will read the tokens; None to trust the caller.

        Raises:
            DamagedArtifactError: a file is missing or not the manifest's.
            InputError: another tokenizer made the tokens.
        """
        from safetensors.torch import load_file

        manifest = verify_manifest(directory)
        if BLOCKS not in manifest["files"]:
            raise DamagedArtifactError(
                f"{directory} holds no {BLOCKS}: run the stage calibration again"
            )
        if tokenizer_digest is not None and manifest["tokenizer"] != tokenizer_digest:
            raise InputError(
                f"{directory} was made with another tokenizer than the model's: run the stage "
                "calibration again"
            )
        blocks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in sorted(load_file(directory / BLOCKS).items()):
            split, domain = name.split("/", 1)
            blocks.setdefault(split, {})[domain] = tensor.long()
        return cls(blocks, manifest["digest"], manifest)

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, Sequence[str]],
        tokenizer: Any,
        *,
        sequences: int = 96,
        sequence_length: int = 128,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> "CalibrationSet":
        """Make a set in memory from documents by domain.

        Every document is in one split only: those with the lowest hashes are for validation.

        Args:
            texts: documents by domain; at least two different ones each.
            tokenizer: a transformers tokenizer with an end-of-text token.
            sequences: calibration sequences over all domains, shared out equally.
            sequence_length: tokens in a sequence.
            validation_share: share of a domain's documents, and of as many sequences.
            seed: which sequences are drawn.

        Raises:
            InputError: a domain has too little text.
        """
        import torch

        if not texts:
            raise InputError("a calibration set needs text: give it at least one domain")
        each = -(-sequences // len(texts))
        wanted = {"calibration": each, "validation": max(1, round(validation_share * each))}
        blocks: dict[str, dict[str, torch.Tensor]] = {split: {} for split in wanted}
        for domain, documents in texts.items():
            unique = sorted(
                {hashlib.sha256(text.encode()).hexdigest(): text for text in documents}.items()
            )
            held = max(1, round(validation_share * len(unique)))
            splits = {"calibration": unique[held:], "validation": unique[:held]}
            for split, chosen in splits.items():
                draw = random.Random(f"{split}/{domain}:{seed}")
                encoded = _tokens([text for _, text in chosen], tokenizer)
                rows, _ = pack(encoded, tokenizer.eos_token_id, sequence_length)
                if len(rows) < wanted[split]:
                    raise InputError(
                        f"domain {domain} has {len(rows)} {split} sequences of {sequence_length} "
                        f"tokens in {len(chosen)} documents, {wanted[split]} are asked for: give "
                        "it more text, or lower sequences or sequence_length"
                    )
                drawn = sorted(draw.sample(range(len(rows)), wanted[split]))
                blocks[split][domain] = torch.from_numpy(rows[drawn]).long()
        facts = {"seed": seed, "sequence_length": sequence_length, "domains": sorted(texts)}
        return cls(blocks, sha256_json({**facts, "sequences": sequences}), facts)


def build_blocks(
    settings: CalibrationSettings,
    document_settings: DocumentSettings,
    documents_dir: Path,
    tokenizer: Any,
    tokenizer_digest: str,
    set_out: Path,
    held_out_out: Path,
    recovery: RecoverySettings | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the calibration set and the held-out set, both or neither.

    `settings.seed` decides the order of the calibration and validation documents and which of
    their blocks are drawn. Held-out blocks depend on no seed: documents in the order of their
    hash, blocks at equal distances.

    Args:
        settings: lengths, numbers and weights of sequences.
        document_settings: the domains, in their order.
        documents_dir: folder of the table of documents.
        tokenizer: a transformers tokenizer with an end-of-text token.
        tokenizer_digest: identifies it.
        set_out: folder for the splits calibration and validation, and recovery where asked for.
        held_out_out: folder for the split test.
        recovery: its budget and length of sequences; the split recovery holds all that the
            calibration documents have, as far as the budget can use it.

    Returns:
        The manifests of the two folders.

    Raises:
        InputError: a domain has too few tokens, or the weights leave it without a sequence.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the model's tokenizer has no end-of-text token (eos_token): set one")
    shares = sequences_by_domain(settings, document_settings.domains)
    table = read_documents(documents_dir)
    wanted = []
    for domain in document_settings.domains:
        length, validation = settings.sequence_length, settings.validation_sequences
        wanted += [
            _Wanted("calibration", domain, shares[domain], length, "sequences"),
            _Wanted("validation", domain, validation, length, "validation_sequences"),
            _Wanted(
                "test",
                domain,
                settings.test_sequences,
                settings.test_sequence_length,
                "test_sequences",
            ),
        ]
        if recovery is not None and recovery.token_budget:
            most = -(-recovery.token_budget // recovery.sequence_length)
            wanted.append(_Wanted("recovery", domain, most, recovery.sequence_length, None))
    built = {
        (item.split, item.domain): _build(item, table, tokenizer, settings.seed)
        for item in track(wanted, "tokens")
    }
    facts = {
        "tokenizer": tokenizer_digest,
        "documents": verify_manifest(documents_dir)["digest"],
    }
    with staged_directory(set_out) as chosen, staged_directory(held_out_out) as held_out:
        set_facts = {**facts, "seed": settings.seed, "sequence_length": settings.sequence_length}
        held_out_facts = {**facts, "sequence_length": settings.test_sequence_length}
        return (
            _write(chosen, built, ("calibration", "validation", "recovery"), set_facts),
            _write(held_out, built, ("test",), held_out_facts),
        )


def sequences_by_domain(settings: CalibrationSettings, domains: list[str]) -> dict[str, int]:
    """Divide `settings.sequences` by the weights: largest remainders, first domain on a tie.

    Raises:
        InputError: a domain is left without a sequence.
    """
    weights = [settings.weights.get(domain, 1.0) for domain in domains]
    exact = [settings.sequences * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(domains)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: settings.sequences - sum(counts)]:
        counts[index] += 1
    for domain, count in zip(domains, counts, strict=True):
        if count == 0:
            raise InputError(
                f"domain {domain} gets none of the {settings.sequences} calibration sequences: "
                f"raise calibration.sequences or calibration.weights.{domain}"
            )
    return dict(zip(domains, counts, strict=True))


def pack(
    documents: list[list[int]], separator: int, length: int
) -> "tuple[numpy.ndarray, list[set[int]]]":
    """Join the tokens of documents and cut them into blocks.

    Args:
        documents: token ids of each document.
        separator: the token id between two documents.
        length: tokens in a block.

    Returns:
        The blocks [n, length], int32, and for each the indices of the documents in it.
    """
    import numpy

    stream: list[int] = []
    owners: list[int] = []
    for index, tokens in enumerate(documents):
        if index:
            stream.append(separator)
            owners.append(index - 1)
        stream += tokens
        owners += [index] * len(tokens)
    count = len(stream) // length
    blocks = numpy.asarray(stream[: count * length], dtype=numpy.int32).reshape(count, length)
    return blocks, [
        set(owners[start : start + length]) for start in range(0, count * length, length)
    ]


@dataclass(frozen=True)
class _Wanted:
    """How many blocks of one split and domain are asked for, and by which setting.

    Without a setting, as many as there are will do.
    """

    split: str
    domain: str
    sequences: int
    length: int
    setting: str | None


@dataclass(frozen=True)
class _Built:
    """The blocks drawn, and what the manifest says of them."""

    blocks: "numpy.ndarray"
    facts: dict[str, int]


def _build(wanted: _Wanted, table: "pandas.DataFrame", tokenizer: Any, seed: int) -> _Built:
    source = "calibration" if wanted.split == "recovery" else wanted.split
    rows = table[(table["domain"] == wanted.domain) & (table["split"] == source)]
    # Rows come in the order of their hash, whatever order the table was written in.
    texts = [text for _, text in sorted(zip(rows["sha256"], rows["text"], strict=True))]
    draw = random.Random(f"{wanted.split}/{wanted.domain}:{seed}")
    if wanted.split != "test":
        draw.shuffle(texts)
    blocks, owners = pack(_tokens(texts, tokenizer), tokenizer.eos_token_id, wanted.length)
    sequences = wanted.sequences if wanted.setting else min(wanted.sequences, len(blocks))
    if len(blocks) < max(1, sequences):
        raise InputError(
            f"domain {wanted.domain} has {len(blocks)} {wanted.split} sequences of "
            f"{wanted.length} tokens, {wanted.sequences} are asked for: lower "
            f"calibration.{wanted.setting or 'sequence_length'}, or add sources to "
            f"{wanted.domain} in configs/domains.yaml"
        )
    if wanted.split == "test":
        chosen = [
            (2 * index + 1) * len(blocks) // (2 * wanted.sequences)
            for index in range(wanted.sequences)
        ]
    else:
        chosen = draw.sample(range(len(blocks)), sequences)
    facts = {
        "sequences": sequences,
        "tokens": sequences * wanted.length,
        "documents": len(set().union(*(owners[index] for index in chosen))),
        "available": len(blocks),
    }
    return _Built(blocks[chosen], facts)


def _tokens(texts: list[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: a document longer than the model's context is expected here, and cut.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _write(
    folder: Path,
    built: dict[tuple[str, str], _Built],
    splits: Iterable[str],
    facts: dict[str, Any],
) -> dict[str, Any]:
    from safetensors.numpy import save_file

    tensors: dict[str, numpy.ndarray] = {}
    domains: dict[str, dict[str, dict[str, int]]] = {}
    for split in splits:
        for (of, domain), item in built.items():
            if of == split:
                tensors[f"{split}/{domain}"] = item.blocks
                domains.setdefault(domain, {})[split] = item.facts
    save_file(tensors, folder / BLOCKS)
    return write_manifest(folder, **facts, domains=domains)
