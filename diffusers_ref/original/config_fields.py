"""Reading and checking the originals' own configuration files.

A format declares the options that it understands as `Field`s; `read_options` returns exactly those, checked and with
defaults filled in, or says which one is missing, unknown or wrong.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_ref.configuration import ConfigError
from diffusers_ref.loading import LoadingError

REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """An option: `check` returns its value in the right type, or raises ValueError that says what is allowed."""

    check: Callable[[Any], Any]
    default: Any = REQUIRED


def read_mapping(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping as it is, or the contents of a .json, .yml or .yaml file. Raises LoadingError, ConfigError."""
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if path.suffix not in (".json", ".yml", ".yaml"):
        raise ConfigError(f"{path}: unknown kind of configuration file; allowed: .yml, .yaml, .json, or a mapping")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LoadingError(f"there is no configuration file {path}") from None
    contents = _parse(text, path)
    if not isinstance(contents, Mapping):
        raise ConfigError(f"{path} must hold a mapping, not a {type(contents).__name__}")
    return contents


def _parse(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def read_options(
    values: Any, fields: Mapping[str, Field], where: str, ignored: Collection[str] | None = ()
) -> dict[str, Any]:
    """The options in `fields`, checked, in the order of `fields`.

    Args:
        values: mapping from option to value.
        where: names the file or section in messages.
        ignored: known options that neither the network nor the sampler depends on; None to accept any other.

    Raises ConfigError.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {type(values).__name__}")
    unknown = [] if ignored is None else [str(key) for key in values if key not in fields and key not in ignored]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(fields), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"{where}: unknown option {', '.join(unknown)}{hint}; allowed: {', '.join(fields)}")
    missing = [key for key, field in fields.items() if field.default is REQUIRED and key not in values]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    options = {}
    for key, field in fields.items():
        try:
            options[key] = field.check(values[key]) if key in values else field.default
        except ValueError as error:
            raise ConfigError(f"{where}: {key} {error}, got {values[key]!r}") from None
    return options


def section(config: Mapping[str, Any], name: str, where: str) -> Any:
    """A required section of a configuration. Raises ConfigError."""
    if name not in config:
        raise ConfigError(f"{where} lacks the section {name!r}; it has {', '.join(map(str, config)) or 'none'}")
    return config[name]


# --- checks: numbers and booleans may also come as text, as on a command line ----------------------------------------


def whole(value: Any) -> int:
    """A positive whole number."""
    try:
        result = 0 if isinstance(value, bool) or float(value) != int(value) else int(value)
    except (TypeError, ValueError, OverflowError):
        result = 0
    if result < 1:
        raise ValueError("must be a positive whole number")
    return result


def wholes(value: Any) -> list[int]:
    """A list of positive whole numbers, or text such as "16,8"."""
    parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    try:
        return [whole(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError("must be a list of positive whole numbers") from None


def number(value: Any) -> float:
    """A finite number that is not negative; YAML reads 1e-4 as text."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = -1.0
    if isinstance(value, bool) or not 0 <= result < float("inf"):
        raise ValueError("must be a number, not negative")
    return result


def probability(value: Any) -> float:
    """A number in [0, 1]."""
    result = number(value)
    if result > 1:
        raise ValueError("must be in [0, 1]")
    return result


def boolean(value: Any) -> bool:
    """True or False, or the texts that the originals' command lines accept."""
    text = str(value).lower()
    if text in ("yes", "true", "t", "y", "1"):
        return True
    if text in ("no", "false", "f", "n", "0"):
        return False
    raise ValueError("must be true or false")


def one_of(*allowed: Any) -> Callable[[Any], Any]:
    """One of the given values."""

    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"must be {' or '.join(map(repr, allowed))}")
        return value

    return check


def only(allowed: Any, reason: str) -> Callable[[Any], Any]:
    """One value; `reason` says why no other is supported."""

    def check(value: Any) -> Any:
        if value != allowed:
            raise ValueError(f"must be {allowed!r} ({reason})")
        return value

    return check
