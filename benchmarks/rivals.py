"""Rivals' own tools, where they are installed, behind the signature of `benchmarks.peers`.

Each is used as its documentation says, at what it does best: MLP neurons, the same number from
every layer, on the calibration text that every other row has. None is a dependency:

    pip install --no-deps optipfair torch-pruning fmchisel
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peer_parts import Choice, batches_of, cut_layer_by_layer, uniform_counts
from benchmarks.peers import RIDGE, Peer
from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, layers_of
from pruneflow.progress import track
from pruneflow.pruning.losses import losses_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def prune_optipfair(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    data: bool = True,
) -> float:
    """OptiPFair: the weights' extremes (MAW), and with data the neurons' activations.

    Raises:
        InputError: it is not installed.
    """
    import logging

    _check("optipfair")
    from optipfair import prune_model

    logging.getLogger().setLevel(logging.WARNING)  # the import sets the root logger to INFO
    layers = layers_of(model)
    before = block_weights(model)
    gone, _ = uniform_counts(layers, before, ratio, attention=False)
    batches = [{"input_ids": batch} for batch in batches_of(blocks, batch_tokens)]
    prune_model(
        model,
        neuron_selection_method="MAW",
        pruning_percentage=100 * (gone + 0.5) / layers[0].neurons,  # it rounds down
        dataloader=batches if data else None,
        show_progress=False,
    )
    model.requires_grad_(False)
    return 1 - block_weights(model) / before


def prune_optipfair_weights(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
) -> float:
    """OptiPFair's default: it looks at weights alone."""
    return prune_optipfair(model, blocks, ratio, batch_tokens=batch_tokens, data=False)


def prune_torch_pruning(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
) -> float:
    """Torch-Pruning: its dependency graph and GroupTaylorImportance, on the mean loss.

    It needs gradients of all weights, and leaves configuration and hidden size to its user: here
    attention and the residual stream are excluded, which helps it.

    Raises:
        InputError: it is not installed.
    """
    import warnings

    import torch

    _check("torch_pruning")
    import torch_pruning

    layers = layers_of(model)
    before = block_weights(model)
    gone, _ = uniform_counts(layers, before, ratio, attention=False)
    batches = batches_of(blocks, batch_tokens)
    sequences = sum(len(batch) for batch in batches)
    model.requires_grad_(True)
    for batch in track(batches, "torch-pruning"):
        ids = batch.to(model.device)
        _, losses = losses_of(model(input_ids=ids, use_cache=False).logits, ids)
        (losses.mean(1).sum() / sequences).backward()
    outside = [model.get_output_embeddings()]
    outside += [part for layer in layers for part in (layer.attention, layer.mlp_consumer)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norms' weights, which are not pruned
        torch_pruning.pruner.BasePruner(
            model,
            example_inputs={"input_ids": batches[0][:1].to(model.device)},
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=(gone + 0.5) / layers[0].neurons,  # it rounds down
            ignored_layers=outside,
            root_module_types=[torch.nn.Linear],
            forward_fn=lambda network, inputs: network(**inputs, use_cache=False),
            output_transform=lambda output: output.logits,
        ).step()
    model.zero_grad()
    model.requires_grad_(False)
    return 1 - block_weights(model) / before


def prune_fmchisel(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
) -> float:
    """FMCHISEL's OSSCAR: its solver, given each layer's ``X^T X``, with its defaults.

    Its package wants older torch and transformers and `llmcompressor`, so its solver's file is
    loaded by itself. It works in float32, masks by zeroed columns, and those are taken out here.

    Raises:
        InputError: it is not installed.
    """
    solver = _fmchisel_solver()

    def choose(weight: "Tensor", gram: "Tensor", columns: int, keep: int) -> Choice:
        import torch

        b, h = weight.float().T.clone(), gram.float()
        b[h.diagonal() == 0] = 0
        h += torch.eye(len(h), device=h.device) * RIDGE * h.diagonal().mean()
        solution, _ = solver.OSSCAR_fastprune(b, h, h @ b, len(h) // columns, keep, False, 1)
        kept = solution.abs().sum(0).view(-1, columns).sum(1).nonzero().flatten()
        if len(kept) != keep:
            raise InputError(f"fmchisel kept {len(kept)} of {keep} units")
        return Choice(kept, solution[:, kept].double())

    return cut_layer_by_layer(model, blocks, ratio, False, batch_tokens, choose, "fmchisel")


def _fmchisel_solver() -> Any:
    found = _check("fmchisel")
    path = Path(found) / "pruning/osscar/utils/osscar_sparsify.py"
    import torch

    # All it takes from llmcompressor, which does not run beside current transformers.
    precision = types.ModuleType("llmcompressor.modifiers.obcq.sgpt_sparsify")
    vars(precision)["SGPT_PRECISION"] = torch.float32
    stand_ins = {precision.__name__: precision}
    for name in ("llmcompressor", "llmcompressor.modifiers", "llmcompressor.modifiers.obcq"):
        stand_ins[name] = types.ModuleType(name)
    absent = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        spec = importlib.util.spec_from_file_location("fmchisel_osscar", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name in absent:
            del sys.modules[name]
    return module


def installed(name: str) -> bool:
    """Whether the tool behind a row of `RIVALS` can be imported here."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def _check(package: str) -> str:
    """The folder of an installed package, which is not imported for it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise InputError(f"{name} is not installed: `pip install --no-deps {name}`")
    return spec.submodule_search_locations[0]


RIVALS: dict[str, Peer] = {
    "optipfair_weights": prune_optipfair_weights,
    "optipfair": prune_optipfair,
    "torch_pruning": prune_torch_pruning,
    "fmchisel": prune_fmchisel,
}
PACKAGES = {
    "optipfair_weights": "optipfair",
    "optipfair": "optipfair",
    "torch_pruning": "torch_pruning",
    "fmchisel": "fmchisel",
}
