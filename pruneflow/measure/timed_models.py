"""Placement of two models that are timed in turn: both on the device, or one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel

from pruneflow.compute.placement import (
    free_memory,
    place,
    place_by_settings,
    placement_of,
    tensor_bytes,
)
from pruneflow.compute.ranks import own_gpus
from pruneflow.models.loading import load_model, resolve_device
from pruneflow.settings.pipeline import ComputeSettings

ROOM = 0.9  # of a GPU's free memory, for weights, where only one sequence is processed


class Turns:
    """Models on the device together where twice the first fits; else one at a time.

    After ``with Turns(...) as turns`` the device is free for others.

    Args:
        directories: of the models by name; the first is the largest.
        compute: device, data type and placement. With `auto` a model that fits is whole.

    Attributes:
        models: by name, in evaluation mode; outside their turns on the CPU, unless together.
        together: whether they are.
        placement: by name, where each was timed: ``whole``, ``spread`` or ``streamed``.
    """

    def __init__(self, directories: dict[str, Path], compute: ComputeSettings) -> None:
        self._device = resolve_device(compute)
        self.models: dict[str, PreTrainedModel] = {}
        self.together = self._device == "cpu"
        self.placement: dict[str, str] = {}
        self._asked = dict.fromkeys(directories, compute)
        on_host = compute.model_copy(update={"device": "cpu", "placement": "whole"})
        may_be_whole = self._device == "cuda" and compute.placement in ("auto", "whole")
        for name, directory in directories.items():
            model = load_model(directory, on_host)[0].eval()
            if may_be_whole and not self.models:
                self.together = self._has_room(2 * tensor_bytes(model))
            if self.together:
                place(model, self._device)
            elif may_be_whole and self._has_room(tensor_bytes(model)):
                self._asked[name] = compute.model_copy(update={"placement": "whole"})
            self.models[name], self.placement[name] = model, placement_of(model)

    def _has_room(self, weights: int) -> bool:
        return weights <= ROOM * free_memory(own_gpus()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self._device == "cuda":
            for model in self.models.values():
                place(model, "cpu")
            free_memory(own_gpus()[0])

    @contextmanager
    def turn(self, name: str) -> Iterator[PreTrainedModel]:
        """The model of a name, on the device."""
        model = self.models[name]
        if self.together:
            yield model
            return
        place_by_settings(model, self._asked[name], self._device)
        self.placement[name] = placement_of(model)
        try:
            yield model
        finally:
            place(model, "cpu")
