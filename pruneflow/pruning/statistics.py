"""One forward and backward pass over the calibration set: what each unit does to the loss.

With ``z_tj = x_tj * dL/dx_tj`` at a consumer's input, the mask-Fisher statistic of channel j is
``F_j = mean over sequences of (sum_t z_tj)^2``: the squared derivative of a sequence's loss with
respect to a mask on the channel. A KV group's mask covers its columns, so z is summed over them
first. Statistics are kept per domain.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneflow.models.structure import layers_of
from pruneflow.progress import track

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class UnitScores:
    """A number for every prunable unit: higher is more worth keeping.

    Attributes:
        domains: names of the rows.
        neurons: per layer, ``[domains, neurons]`` float64.
        kv_groups: per layer, ``[domains, KV groups]`` float64.
        losses: mean loss per token of each domain, empty when no data was used.
    """

    domains: list[str]
    neurons: list["torch.Tensor"]
    kv_groups: list["torch.Tensor"]
    losses: dict[str, float]

    def combined(self, weights: dict[str, float]) -> tuple[list["torch.Tensor"], ...]:
        """Average over domains after scaling each to total 1, so that none shouts.

        Args:
            weights: relative weight of a domain; 1 when absent.

        Returns:
            Neurons and KV groups, per layer ``[units]``.
        """
        import torch

        totals = sum(t.sum(1) for t in self.neurons) + sum(t.sum(1) for t in self.kv_groups)
        shares = torch.tensor([weights.get(name, 1.0) for name in self.domains], dtype=torch.double)
        factors = (shares / shares.sum()) / torch.as_tensor(totals).clamp_min(1e-300)
        return [factors @ t for t in self.neurons], [factors @ t for t in self.kv_groups]


def mask_fisher(
    model: "PreTrainedModel",
    blocks: dict[str, "torch.Tensor"],
    batch_tokens: int,
    label: str,
) -> UnitScores:
    """Mask-Fisher of every neuron and KV group, per domain.

    Args:
        model: the model of this round; its weights stay frozen and get no gradients.
        blocks: token ids per domain, ``[sequences, tokens]``, without padding.
        batch_tokens: tokens in one batch. The result does not depend on it: a sequence's loss is
            the mean over its own tokens, and sequences do not see each other.
        label: names the progress bar.
    """
    import torch

    layers = layers_of(model)
    domain = ""
    sums: dict[tuple[str, str, int], torch.Tensor] = {}

    def add(kind: str, layer: int, per_sequence: torch.Tensor) -> None:
        squares = per_sequence.double().square().sum(0).cpu()
        key = (domain, kind, layer)
        sums[key] = sums[key] + squares if key in sums else squares

    def watch(kind: str, layer: int, columns: int) -> object:
        def before(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0]
            values = x.detach()  # a hook that held x itself would keep the whole graph alive

            def on_gradient(gradient: torch.Tensor) -> None:
                z = (wide(values) * wide(gradient)).sum(1)  # [sequences, channels]
                add(kind, layer, z.unflatten(1, (-1, columns)).sum(2) if columns > 1 else z)

            x.register_hook(on_gradient)

        return before

    handles = [
        model.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(True)
        )
    ]
    for layer in layers:
        for kind, consumer, columns in (
            ("neurons", layer.mlp_consumer, 1),
            ("kv_groups", layer.attention_consumer, layer.group_columns),
        ):
            hook = watch(kind, layer.index, columns)
            handles.append(consumer.register_forward_pre_hook(hook))

    batches = [
        (name, batch)
        for name, tokens in blocks.items()
        for batch in tokens.split(max(1, batch_tokens // tokens.shape[1]))
    ]
    losses = dict.fromkeys(blocks, 0.0)
    try:
        for domain, batch in track(batches, label):
            loss = sequence_losses(model, batch.to(model.device)).sum()
            loss.backward()
            losses[domain] += float(loss.detach()) / len(blocks[domain])
    finally:
        for handle in handles:
            handle.remove()

    def means(kind: str) -> list[torch.Tensor]:
        return [
            torch.stack([sums[name, kind, layer.index] / len(blocks[name]) for name in blocks])
            for layer in layers
        ]

    return UnitScores(list(blocks), means("neurons"), means("kv_groups"), losses)


def sequence_losses(model: "PreTrainedModel", tokens: "torch.Tensor") -> "torch.Tensor":
    """Mean negative log-likelihood of each sequence's tokens after its first, ``[n]``.

    Args:
        model: a causal language model.
        tokens: token ids ``[n, tokens]`` on the model's device, without padding.
    """
    from torch.nn.functional import cross_entropy

    logits = wide(model(input_ids=tokens, use_cache=False).logits[:, :-1])
    targets = tokens[:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets).mean(1)


def wide(tensor: "torch.Tensor") -> "torch.Tensor":
    """The same values in float32, or in float64 when they already are."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
