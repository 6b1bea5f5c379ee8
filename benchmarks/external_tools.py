"""External tools: Torch-Pruning, OptiPFair and fmchisel, as installed, on the same text.

Each is used as documented and where it performs best: on MLP neurons, equally many per layer, with
the calibration text of all other rows. They are not dependencies:

    pip install --no-deps optipfair torch-pruning fmchisel
"""

import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.method_parts import Blocks, Choice, batches_of, cut_layer_by_layer, uniform_counts
from benchmarks.reimplemented_methods import RIDGE
from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, layers_of
from pruneflow.progress import track
from pruneflow.pruning.token_losses import losses_of


class ExternalTool(NamedTuple):
    """A tool as a `benchmarks.reimplemented_methods.PruningMethod`.

    Attributes:
        package: import name of the package.
        prune: called with model, calibration blocks, ratio and batch tokens; prunes in place.
    """

    package: str
    prune: Callable[[PreTrainedModel, Blocks, float, int], None]

    def __call__(
        self, model: PreTrainedModel, blocks: Blocks, ratio: float, *, batch_tokens: int = 2048
    ) -> float:
        """Prune `model` in place to `ratio` and return the actual ratio.

        Raises:
            InputError: the tool is not installed.
        """
        if not self.installed:
            name = self.package.replace("_", "-")
            raise InputError(f"{name} is not installed: `pip install --no-deps {name}`")
        before = block_weights(model)
        self.prune(model, blocks, ratio, batch_tokens)
        model.requires_grad_(False)
        return 1 - block_weights(model) / before

    @property
    def installed(self) -> bool:
        """Whether it is installed; does not import it."""
        return importlib.util.find_spec(self.package) is not None


def _removed_share(model: PreTrainedModel, ratio: float) -> float:
    """Share of neurons to remove from every layer, plus half a neuron, because tools round down."""
    layers = layers_of(model)
    removed, _ = uniform_counts(layers, block_weights(model), ratio, attention=False)
    return (removed + 0.5) / layers[0].neurons


def _optipfair(
    model: PreTrainedModel, blocks: Blocks, ratio: float, batch_tokens: int, data: bool
) -> None:
    """OptiPFair: maximum absolute weights (MAW), combined with activations if `data` is set."""
    from optipfair import prune_model

    logging.getLogger().setLevel(logging.WARNING)  # the import sets the root logger to INFO
    batches = [{"input_ids": batch} for batch in batches_of(blocks, batch_tokens)]
    prune_model(
        model,
        neuron_selection_method="MAW",
        pruning_percentage=100 * _removed_share(model, ratio),
        dataloader=batches if data else None,
        show_progress=False,
    )


def _torch_pruning(model: PreTrainedModel, blocks: Blocks, ratio: float, batch_tokens: int) -> None:
    """Torch-Pruning: its dependency graph and GroupTaylorImportance, on the mean loss.

    It needs gradients of all weights. Attention and the residual stream are excluded here, which
    improves its results.
    """
    import torch_pruning

    batches = batches_of(blocks, batch_tokens)
    sequences = sum(len(batch) for batch in batches)
    model.requires_grad_(True)
    for batch in track(batches, "torch-pruning"):
        ids = batch.to(model.device)
        _, losses = losses_of(model(input_ids=ids, use_cache=False).logits, ids)
        (losses.mean(1).sum() / sequences).backward()
    outside = [model.get_output_embeddings()]
    outside += [
        part for layer in layers_of(model) for part in (layer.attention, layer.mlp_consumer)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norms' weights, which are not pruned
        torch_pruning.pruner.BasePruner(
            model,
            example_inputs={"input_ids": batches[0][:1].to(model.device)},
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=_removed_share(model, ratio),
            ignored_layers=outside,
            root_module_types=[torch.nn.Linear],
            forward_fn=lambda network, inputs: network(**inputs, use_cache=False),
            output_transform=lambda output: output.logits,
        ).step()
    model.zero_grad()


def _fmchisel(model: PreTrainedModel, blocks: Blocks, ratio: float, batch_tokens: int) -> None:
    """FMCHISEL's OSSCAR: its solver, given each layer's ``X^T X``, with its defaults.

    Its package requires older versions of torch and transformers and `llmcompressor`, so only the
    solver's file is loaded. It computes in float32 and masks columns with zeros, which are then
    removed.
    """
    solver = _fmchisel_solver()

    def choose(weight: Tensor, gram: Tensor, columns: int, keep: int) -> Choice:
        b, h = weight.float().T.clone(), gram.float()
        b[h.diagonal() == 0] = 0
        h += torch.eye(len(h), device=h.device) * RIDGE * h.diagonal().mean()
        solution, _ = solver.OSSCAR_fastprune(b, h, h @ b, len(h) // columns, keep, False, 1)
        kept = solution.abs().sum(0).view(-1, columns).sum(1).nonzero().flatten()
        if len(kept) != keep:
            raise InputError(f"fmchisel kept {len(kept)} of {keep} units: use another ratio")
        return Choice(kept, solution[:, kept].double())

    cut_layer_by_layer(model, blocks, ratio, False, batch_tokens, choose, "fmchisel")


def _fmchisel_solver() -> Any:
    package = importlib.util.find_spec("fmchisel")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    path = folder / "pruning/osscar/utils/osscar_sparsify.py"
    # The only name it uses of llmcompressor, which is incompatible with current transformers.
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


EXTERNAL_TOOLS = {
    "optipfair_weights": ExternalTool("optipfair", partial(_optipfair, data=False)),  # its default
    "optipfair": ExternalTool("optipfair", partial(_optipfair, data=True)),
    "torch_pruning": ExternalTool("torch_pruning", _torch_pruning),
    "fmchisel": ExternalTool("fmchisel", _fmchisel),
}
