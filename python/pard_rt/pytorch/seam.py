"""Where transformers' modules and modules of one's own meet: run with an attention of ours."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pard_rt.pytorch.attention import Attention, attending
from pard_rt.pytorch.probe import Adopted, adopt, running_as_decoder


class Seam(Protocol):
    """A decoder's module, as `TorchModel` and `StaticModel` run it."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, its keys and its values."""
        ...

    @property
    def num_embeddings(self) -> int:
        """Token ids it can be fed: 0 to one less."""
        ...

    def adopt(self, max_length: int) -> Adopted:
        """Prove, for texts of up to `max_length` positions, that the module can be run this way.

        Raises
        ------
        ModelError
            It cannot.
        """
        ...

    def logits(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, attention: Attention
    ) -> Tensor:
        """Run tokens int64 [1, R] at positions [1, R]; `attention` knows whose rows they are.

        Returns
        -------
        Tensor
            Logits [n, vocab_size] of `rows`, int64 [n]; n may be 0.
        """
        ...


def twin(module: nn.Module) -> nn.Module:
    """Copy a module, but not its weights: the two share every parameter and buffer.

    The copy has a configuration, a mode and hooks of its own, so what is changed there does not
    reach the module, which others may be using.
    """
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class TransformersSeam:
    """The `Seam` of a transformers ``PreTrainedModel``, whose attention is in a registry.

    The module itself stays as it is; once adopted, a `twin` of it is run.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self._module.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        dtype: torch.dtype = self._module.dtype
        return dtype

    @property
    def num_embeddings(self) -> int:
        """Rows of its embedding."""
        return int(self._module.get_input_embeddings().weight.shape[0])

    def adopt(self, max_length: int) -> Adopted:
        """See `pard_rt.pytorch.probe.adopt`."""
        name = type(self._module).__name__
        with running_as_decoder(name, "a module that copy.deepcopy takes", "Remove its hooks."):
            self._module = twin(self._module)
        return adopt(self._module, max_length)

    def logits(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, attention: Attention
    ) -> Tensor:
        """See `Seam.logits`."""
        with attending(attention):
            out = self._module(
                input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=rows
            )
        logits: Tensor = out.logits[0]
        return logits
