"""Calibration sets: packed token blocks for scores, refits and perplexity.

The split `calibration` has a reserve: a round uses the first blocks of each domain, and more of a
domain to which domain feedback gives more weight (docs/method.md, step 5), without reading
documents again.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from pruneflow.artifacts import sha256_json, staged_directory, verify_manifest, write_manifest
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.settings.base import check
from pruneflow.settings.calibration import AddBos, CalibrationSettings
from pruneflow.settings.recovery import RecoverySettings
from pruneflow.tokens.mixture import Mixture
from pruneflow.tokens.packing import (
    BlockRequest,
    Document,
    PackedBlocks,
    beginning_of,
    block_requests,
    read_batches,
    sample_blocks,
)

BLOCKS = "blocks.safetensors"


@dataclass(frozen=True)
class CalibrationSet:
    """Token blocks by split and domain.

    Attributes:
        blocks: `blocks[split][domain]` is an int64 tensor [blocks, tokens]. The split calibration
            includes a reserve: `take` returns the blocks of a round.
        digest: sha256 of blocks and mixture.
        manifest: counts, mixture, tokenizer and seed.
    """

    blocks: dict[str, dict[str, torch.Tensor]]
    digest: str
    manifest: dict[str, Any]

    @property
    def mixture(self) -> Mixture:
        """The requested shares, and the sequences of a round without feedback."""
        facts = self.manifest["mixture"]
        return Mixture(facts["shares"], facts["counts"])

    def take(self, weights: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """The calibration blocks of one round, by domain: the first of each.

        Args:
            weights: relative weight of every domain; None for the mixture's own. The total number
                of blocks does not depend on them; each domain has at least one block and at most
                those stored (too few are logged).

        Raises:
            InputError: the weights are for other domains.
        """
        held = self.blocks["calibration"]
        counts = self.mixture.counts
        if weights is not None:
            available = {name: len(rows) for name, rows in held.items()}
            counts = self.mixture.reweighed(weights, available)
        return {name: rows[: counts[name]] for name, rows in held.items()}

    @classmethod
    def load(cls, directory: Path, tokenizer_digest: str | None = None) -> Self:
        """Read a folder written by `build_blocks`, after verifying its manifest.

        Args:
            directory: the folder.
            tokenizer_digest: expected digest of the model's tokenizer; None skips the check.

        Raises:
            DamagedArtifactError: a file is missing or does not match the manifest.
            InputError: the tokens are from another tokenizer.
        """
        manifest = verify_manifest(directory)
        if BLOCKS not in manifest["files"]:
            raise DamagedArtifactError(
                f"{directory} has no {BLOCKS}: run the stage calibration again"
            )
        if tokenizer_digest is not None and manifest["tokenizer"] != tokenizer_digest:
            raise InputError(
                f"{directory} was built with another tokenizer than the model's: run the stage "
                "calibration again"
            )
        named = {name: rows.long() for name, rows in sorted(load_file(directory / BLOCKS).items())}
        return cls(_by_split(named), manifest["digest"], manifest)

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, Sequence[str]],
        tokenizer: Any,
        *,
        sequences: int = 96,
        sequence_length: int = 128,
        weights: Mapping[str, float] | None = None,
        reserve: float = 2.0,
        validation_share: float = 0.2,
        add_bos_token: AddBos = "auto",
        seed: int = 0,
    ) -> Self:
        """Build a set in memory from documents by domain.

        Documents with the lowest hashes are for validation, all others for calibration.

        Args:
            texts: documents by domain; at least two different ones each.
            tokenizer: a transformers tokenizer with an end-of-text token.
            sequences: calibration sequences over all domains.
            sequence_length: tokens in a sequence.
            weights: share of every domain, summing to 1; None for equal shares, with `sequences`
                rounded up to a multiple of the number of domains.
            reserve: sequences stored per domain, as a multiple of those used without feedback.
            validation_share: share of documents and of sequences for validation.
            add_bos_token: whether every sequence begins with the beginning-of-text token; ``auto``
                for what the tokenizer itself puts before a text.
            seed: for sampling sequences.

        Raises:
            InputError: a document is not a valid string, a domain has too little text, or the
                shares cannot be reached.
        """
        for domain, of_domain in texts.items():
            _check_texts(domain, of_domain)
        mixture = _mixture_of(list(texts), sequences, sequence_length, weights, reserve)
        requests: list[BlockRequest] = []
        documents: list[Document] = []
        for domain, of_domain in texts.items():
            unique = sorted(
                {hashlib.sha256(text.encode()).hexdigest(): text for text in of_domain}.items()
            )
            held_out = max(1, round(validation_share * len(unique)))
            documents += [
                (domain, "validation" if number < held_out else "calibration", text)
                for number, (_, text) in enumerate(unique)
            ]
            count = mixture.counts[domain]
            validation = max(1, round(validation_share * count))
            fix = "give it more text, or lower sequences or sequence_length"
            requests += [
                BlockRequest(split, domain, sequence_length, "sequence_length", least, most, fix)
                for split, least, most in (
                    ("calibration", count, math.ceil(reserve * count)),
                    ("validation", validation, validation),
                )
            ]
        beginning = beginning_of(tokenizer, add_bos_token)
        packed = _named(sample_blocks(requests, [documents], tokenizer, beginning, seed))
        named = {name: torch.from_numpy(rows).long() for name, rows in packed.items()}
        facts = {
            "seed": seed,
            "sequence_length": sequence_length,
            "beginning": beginning,
            "mixture": mixture.facts,
        }
        digest = sha256_json({"blocks": tensors_digest(named), "mixture": mixture.facts})
        return cls(_by_split(named), digest, facts)


def build_blocks(
    settings: CalibrationSettings,
    domains: list[str],
    documents_dir: Path,
    tokenizer: Any,
    tokenizer_digest: str,
    set_out: Path,
    held_out_out: Path,
    recovery: RecoverySettings | None = None,
    longest: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the calibration set and the held-out set, both or neither.

    The table is read once, in batches. `settings.seed` seeds the sampling of calibration,
    validation and recovery blocks; held-out blocks depend on no seed.

    Args:
        settings: lengths, mixture and numbers of sequences.
        domains: all domains, in order; held-out blocks are sampled from all of them.
        documents_dir: folder of the table of documents.
        tokenizer: a transformers tokenizer with an end-of-text token.
        tokenizer_digest: its digest.
        set_out: folder for the splits calibration, validation and (if enabled) recovery.
        held_out_out: folder for the split test.
        recovery: its token budget and sequence length; the split recovery has all blocks of the
            calibration documents, up to the budget.
        longest: maximum sequence length of the model (max_position_embeddings).

    Returns:
        The manifests of the two folders. `beginning` holds the token ids at the beginning of every
        block, `mixture` the requested and the actual mixture of the calibration split, `domains`
        counts by domain and split: for calibration, the sequences of a round without feedback, and
        all stored ones (`held`).

    Raises:
        InputError: a domain has too few tokens, its share cannot be reached, or a sequence is
            longer than the model supports.
    """
    mixture = Mixture.of(settings, settings.calibrated(domains))
    requests = block_requests(settings, mixture, recovery, domains)
    for request in requests:
        if longest is not None and request.length > longest:
            raise InputError(
                f"{request.length_setting} is {request.length}, and the model supports sequences "
                f"of up to {longest} tokens (max_position_embeddings): lower it"
            )
    documents = verify_manifest(documents_dir)["digest"]
    beginning = beginning_of(tokenizer, settings.add_bos_token)
    batches = read_batches(documents_dir)
    packed = sample_blocks(requests, batches, tokenizer, beginning, settings.seed)
    facts = {"tokenizer": tokenizer_digest, "documents": documents, "beginning": beginning}
    set_facts = {
        "seed": settings.seed,
        "sequence_length": settings.sequence_length,
        "mixture": mixture.facts,
    }
    with staged_directory(set_out) as calibration, staged_directory(held_out_out) as held_out:
        test = {request: found for request, found in packed.items() if request.split == "test"}
        others = {request: found for request, found in packed.items() if request not in test}
        test_facts = {**facts, "sequence_length": settings.test_sequence_length}
        return (
            _write(calibration, others, {**facts, **set_facts}),
            _write(held_out, test, test_facts),
        )


def _check_texts(domain: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"document {number} of {domain} is of type {kind}: give a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"document {number} of {domain} is not valid Unicode (a lone surrogate at "
                f"character {error.start + 1}): decode it with the right encoding"
            ) from None


def _named(packed: dict[BlockRequest, PackedBlocks]) -> dict[str, numpy.ndarray]:
    return {f"{request.split}/{request.domain}": found.blocks for request, found in packed.items()}


def _by_split(named: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors `SPLIT/DOMAIN` by split and domain."""
    blocks: dict[str, dict[str, torch.Tensor]] = {}
    for name, rows in named.items():
        split, domain = name.split("/", 1)
        blocks.setdefault(split, {})[domain] = rows
    return blocks


def _mixture_of(
    domains: list[str],
    sequences: int,
    sequence_length: int,
    weights: Mapping[str, float] | None,
    reserve: float,
) -> Mixture:
    """The mixture of a set built in memory, validated like the settings."""
    if not domains:
        raise InputError("a calibration set needs text: give it at least one domain")
    if weights is None:
        sequences = len(domains) * -(-sequences // len(domains))
    values = {
        "sequences": sequences,
        "sequence_length": sequence_length,
        "weights": dict(weights or {}),
        "reserve": reserve,
    }
    settings = check(CalibrationSettings, values, "a calibration set")
    try:
        settings.check_domains(domains)
    except ValueError as error:
        raise InputError(f"a calibration set: {error}") from None
    return Mixture.of(settings, domains)


def _write(
    folder: Path, packed: dict[BlockRequest, PackedBlocks], facts: dict[str, Any]
) -> dict[str, Any]:
    domains: dict[str, dict[str, dict[str, int]]] = {}
    for request, found in packed.items():
        # A round uses the first blocks of the calibration split; the others are the reserve.
        count = request.least if request.split == "calibration" else len(found.blocks)
        counts = {
            "sequences": count,
            "tokens": count * request.length,
            "documents": len(set().union(*found.documents[:count])),
            "available": found.available,
            "held": len(found.blocks),
        }
        domains.setdefault(request.domain, {})[request.split] = counts
    # In the file as well as in the manifest, so that the digest covers the mixture.
    mixture = json.dumps(facts.get("mixture"), sort_keys=True)
    save_file(_named(packed), folder / BLOCKS, metadata={"mixture": mixture})
    return write_manifest(folder, **facts, domains=domains)
