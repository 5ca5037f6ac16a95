"""Opening checkpoint files, and the containers that weights come in. Nothing that is read here can run code."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ref.loading import LoadingError, WeightsError, load_weights

logger = logging.getLogger(__name__)


def read_checkpoint(file: str | os.PathLike[str]) -> Any:
    """What a checkpoint file holds: arrays by name for .npz, tensors by name for .safetensors, else what torch saved.

    Pickled files go through `torch.load(weights_only=True)`, archives through `numpy.load(allow_pickle=False)`.
    Raises LoadingError if there is no such file, WeightsError if it cannot be read safely.
    """
    path = Path(file)
    if not path.is_file():
        raise LoadingError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise WeightsError(f"{path} is damaged, or not a checkpoint: {error}") from error
    except Exception as error:  # torch raises anything from UnpicklingError to RuntimeError on a file it cannot read.
        raise WeightsError(f"{path} is damaged or holds more than tensors, which is never executed: {error}") from error


def named_tensors(value: Any, what: str) -> dict[str, Any]:
    """`value` if it maps names to tensors (or arrays), else WeightsError. what: names it in the message."""
    if not isinstance(value, Mapping) or not value:
        raise WeightsError(f"{what} must map parameter names to tensors, got {_described(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, (Tensor, np.ndarray, np.generic)):
            raise WeightsError(f"{what} must map parameter names to tensors, but {name!r} is {_described(tensor)}")
    return dict(value)


def without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The state with `prefix` taken off its names, if all of them have it."""
    if all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return dict(state)


def state_of_training_list(checkpoint: Any, *, use_ema: bool, ema_index: int, name: str) -> dict[str, Any]:
    """Weights out of what the DDIM and PNDM authors' code saves.

    Args:
        checkpoint: a plain mapping, returned as it is; or a list [model, optimiser, epoch, step, ...].
        use_ema: take the moving average at `ema_index` of the list, if there is one, instead of the model.
        name: of the format, for messages.

    `module.` (from DataParallel) is taken off the names. Raises WeightsError.
    """
    if isinstance(checkpoint, (list, tuple)):
        if not checkpoint:
            raise WeightsError(f"{name}: the checkpoint is an empty list, not [model, optimiser, epoch, step, ...]")
        has_ema = len(checkpoint) > ema_index
        if use_ema and not has_ema:
            logger.warning("%s: the checkpoint holds no moving average, its raw weights are used", name)
        index = ema_index if use_ema and has_ema else 0
        state = named_tensors(checkpoint[index], f"{name}: entry {index} of the checkpoint")
    else:
        state = named_tensors(checkpoint, f"{name}: the checkpoint")
    return without_prefix(state, "module.")


def _described(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, (Mapping, list, tuple)) else ""
    return f"a {type(value).__name__}{size}"
