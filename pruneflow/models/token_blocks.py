"""Whether a model can read blocks of token ids."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from pruneflow.errors import InputError


def check_blocks(
    model: PreTrainedModel, blocks: Mapping[str, torch.Tensor], label: str, kind: str
) -> None:
    """Check blocks by domain, ``[sequences, tokens]``; `label` and `kind` name them in an error.

    Raises:
        InputError: there are none, one is empty or has another shape, is longer than the model's
            context, or has a token id that is not in its vocabulary.
    """
    if not blocks:
        raise InputError(f"{label}: there is no {kind} text: give at least one domain")
    longest = getattr(model.config, "max_position_embeddings", None)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    for domain, tokens in blocks.items():
        if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
            raise InputError(
                f"{label}: domain {domain} has no {kind} blocks [sequences, tokens] of two tokens "
                f"or more (shape {list(tokens.shape)}): give it more text"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
            raise InputError(
                f"{label}: domain {domain} has token {int(tokens.max())}, but the vocabulary has "
                f"{vocabulary} tokens: make its blocks with the model's tokenizer"
            )
        if longest is not None and tokens.shape[1] > longest:
            raise InputError(
                f"{label}: domain {domain} has sequences of {tokens.shape[1]} tokens, but the "
                f"model supports at most {longest} (max_position_embeddings): give shorter ones"
            )
