"""Results that read as an object, as a mapping and as a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


@dataclass(eq=False)
class BaseOutput:
    """Base of the result dataclasses of networks, schedulers and pipelines.

    A field is reached by attribute (`out.sample`), by name (`out["sample"]`) or by position (`out[0]`, `x, y = out`).
    Positions count only the fields that are not None, so unpacking yields what `return_dict=False` returns.
    `keys()` lists the same fields, so that `dict(out)` works.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None, in order of declaration."""
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        """The names of the fields that are not None, in order of declaration."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} holds no {key!r}; it holds {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(eq=False)
class ImagePipelineOutput(BaseOutput):
    """What an image pipeline returns.

    images: a list of B PIL images ("pil"), an array (B, H, W, C) in [0, 1] ("np"), a tensor (B, C, H, W) in [0, 1]
        ("pt"), or the sampler's last tensor (B, C, H, W) untouched ("latent", "raw").
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
