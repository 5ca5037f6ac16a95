"""From an original checkpoint and its configuration to our network and schedulers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from diffusers_ref.configuration import ConfigError
from diffusers_ref.loading import WeightsError
from diffusers_ref.modeling import ModelMixin, load_state_dict_strictly

from . import (
    ermongroup_ddim,
    hojonathanho_diffusion,
    lupingliu_pndm,
    openai_improved_diffusion,
    yang_song_score_sde,
)
from .checkpoints import read_checkpoint
from .config_fields import read_mapping
from .key_rules import (
    KeyRule,
    Layer,
    Shape,
    aligned_modules,
    convert,
    empty_network,
    key_rules,
    original_shapes,
)

Source = str | os.PathLike[str] | Mapping[str, Any]


class OriginalFormat(Protocol):
    """What a module of this package declares about one original's checkpoints.

    A `config` is what `parse_config` returns.
    """

    NAME: str
    """The repository that the format comes from."""

    pixel_rounding: str
    """How the original turns pixels into integers: "round" or "truncate"."""

    separator: str
    """Between a module's path and the name of its parameter."""

    def recognises_config(self, config: Mapping[str, Any], /) -> bool: ...
    def recognises_state(self, names: Collection[str], /) -> bool: ...
    def parse_config(self, source: Source, /) -> dict[str, Any]: ...
    def unet_config(self, config: Mapping[str, Any], /) -> dict[str, Any]: ...
    def scheduler_configs(self, config: Mapping[str, Any], /) -> dict[str, dict[str, Any]]: ...
    def extract_state(self, checkpoint: Any, use_ema: bool = ...) -> dict[str, Any]: ...
    def layers(self, config: Mapping[str, Any], /) -> list[Layer]: ...


_MODULES: tuple[OriginalFormat, ...] = (
    ermongroup_ddim,
    hojonathanho_diffusion,
    lupingliu_pndm,
    openai_improved_diffusion,
    yang_song_score_sde,
)
FORMATS: Mapping[str, OriginalFormat] = {module.NAME: module for module in _MODULES}


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint in our terms.

    format: name of the original format.
    unet: the network, a UNet2DModel or another class that the format names.
    scheduler_configs: scheduler class name -> options that reproduce the original's samplers.
    pixel_rounding: how the original turns pixels into integers.
    """

    format: str
    unet: ModelMixin
    scheduler_configs: dict[str, dict[str, Any]]
    pixel_rounding: str


def get_format(name: str) -> OriginalFormat:
    """The format of that name. Raises ValueError."""
    if name not in FORMATS:
        raise ValueError(f"unknown original format {name!r}; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


def detect_format(config: Mapping[str, Any]) -> OriginalFormat:
    """The format that a configuration is written in, by its sections or option names. Raises ConfigError."""
    found = [format for format in FORMATS.values() if format.recognises_config(config)]
    if len(found) != 1:
        what = f"could be of {' or '.join(format.NAME for format in found)}" if found else "is of no known format"
        raise ConfigError(
            f"the original config (with {', '.join(map(str, config)) or 'no options'}) {what}; "
            f"name it with original_format=, one of {', '.join(FORMATS)}"
        )
    return found[0]


def key_map(format: OriginalFormat, config: Mapping[str, Any]) -> list[KeyRule]:
    """How each of our parameters is made from the original's, for a parsed configuration."""
    return key_rules(format.layers(config), separator=format.separator)


def module_map(format: OriginalFormat, config: Mapping[str, Any]) -> dict[str, str]:
    """Original module path -> our module path, where outputs hold the same numbers in the same order.

    TensorFlow's outputs are (B, H, W, C), ours (B, C, H, W).
    """
    return aligned_modules(format.layers(config))


def original_keys(format: OriginalFormat, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every original parameter, without the original's code."""
    return original_shapes(key_map(format, config), empty_network(format.unet_config(config)).state_dict())


def build_unet(format: str, config: Source, original_state: Mapping[str, Any]) -> ModelMixin:
    """Our network with the weights of a state in the original's own layout; float32, in evaluation mode.

    Args:
        format: name of the original format, such as "ermongroup/ddim".
        config: the original's configuration (file or mapping).
        original_state: original parameter name -> tensor or array; it is copied.

    Raises ConfigError for a bad configuration, WeightsError where configuration and state contradict each other.
    """
    module = get_format(format)
    return _build_unet(module, module.parse_config(config), original_state, f"the state of {format}")


def load_single_file(
    checkpoint: str | os.PathLike[str],
    original_config: Source | None,
    original_format: str | None = None,
    use_ema: bool = True,
) -> SingleFile:
    """Open an original checkpoint file.

    Args:
        checkpoint: the file as the original code saves or publishes it.
        original_config: the original's configuration file, its contents as a mapping, or, where an original's
            configurations are code and its format lists them, the name of one.
        original_format: name of the format; by default it is recognised by the configuration.
        use_ema: the moving average of the weights, where the file holds one beside the raw weights.

    Raises LoadingError, ConfigError, WeightsError.
    """
    if original_config is None:
        raise ConfigError(
            "original_config is needed: a checkpoint of this kind holds neither the image size nor the noise schedule; "
            "pass the configuration file that belongs to it"
        )
    contents = _named_config(original_config) or read_mapping(original_config)
    module = get_format(original_format) if original_format is not None else detect_format(contents)
    config = module.parse_config(contents)

    state = module.extract_state(read_checkpoint(checkpoint), use_ema=use_ema)
    if not module.recognises_state(state):
        others = [other.NAME for other in FORMATS.values() if other.recognises_state(state)]
        found = f"are named as in {' or '.join(others)}" if others else f"begin with {', '.join(list(state)[:4])}"
        raise WeightsError(
            f"the config is one of {module.NAME}, but {checkpoint} does not hold its network: its parameters {found}"
        )
    return SingleFile(
        format=module.NAME,
        unet=_build_unet(module, config, state, str(checkpoint)),
        scheduler_configs=module.scheduler_configs(config),
        pixel_rounding=module.pixel_rounding,
    )


def _named_config(source: Source) -> Mapping[str, Any] | None:
    """The official configuration that a text names, if a format has one of that name."""
    if not isinstance(source, str):
        return None
    named = (module.named_config(source) for module in FORMATS.values() if hasattr(module, "named_config"))
    return next((config for config in named if config is not None), None)


def _build_unet(
    module: OriginalFormat, config: Mapping[str, Any], original_state: Mapping[str, Any], source: str
) -> ModelMixin:
    unet = empty_network(module.unet_config(config))
    weights = convert(original_state, key_map(module, config), unet.state_dict(), source)
    load_state_dict_strictly(unet, weights, source)
    return unet.eval()
