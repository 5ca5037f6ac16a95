"""Configurations: what an object was made with, as a frozen record that travels through JSON.

The arguments of a constructor decorated with `register_to_config` are recorded in `self.config`. Files and keys are
named as in HF diffusers, so that they move both ways.
"""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from diffusers_ref import registry
from diffusers_ref.saving import write_text
from diffusers_ref.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# Keys that releases of 2022 wrote and that choose nothing today, with the only values for which that is true.
DEFAULTED = "_defaulted"
"""Key of a configuration file under which stand the options that were left at the default of the class."""

RETIRED_KEYS: dict[str, tuple[Any, ...]] = {
    "tensor_format": ("pt", None),
    "timestep_values": (None,),
}


class ConfigError(ValueError):
    """A configuration that names an unknown key or class, lacks one, or cannot be read."""


class Config(Mapping[str, Any]):
    """Frozen record of constructor arguments: `config.key`, `config["key"]`, `dict(config)`.

    Lists and arrays are held as tuples, enums as their values, so a record equals its own JSON round trip.

    defaulted: the keys that were left at the default of the class.
    owner: name of the class that the record describes, or None.
    """

    __slots__ = ("_values", "defaulted", "owner")

    defaulted: frozenset[str]
    owner: str | None

    def __init__(self, values: Mapping[str, Any], defaulted: Iterable[str] = (), owner: str | None = None) -> None:
        object.__setattr__(self, "_values", {key: _frozen(value) for key, value in values.items()})
        object.__setattr__(self, "defaulted", frozenset(defaulted))
        object.__setattr__(self, "owner", owner)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self._values:
            raise AttributeError(f"{self.owner or 'this'} config has no {key!r}; it has {', '.join(self._values)}")
        return self._values[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(
            f"a config is frozen: {key!r} cannot be set; make a new object with from_config(config, {key}=...)"
        )

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"a config is frozen: {key!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (dict(self._values), self.defaulted, self.owner)

    def __repr__(self) -> str:
        return f"Config({self.owner}, {self._values})"


def _frozen(value: Any) -> Any:
    """Lists, arrays and tensors as tuples; enums and paths as plain values; everything else as it is."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, tensors
        return _frozen(value.tolist())
    return value


Init = TypeVar("Init", bound=Callable[..., None])


def register_to_config(init: Init) -> Init:
    """Decorator of a constructor: records its arguments, defaults included, in `self.config` before it runs.

    Of several decorated constructors in a class hierarchy the outermost one is recorded.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is recording_init or "config" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            given = set(bound.arguments)
            bound.apply_defaults()
            values = dict(list(bound.arguments.items())[1:])
            # Not setattr: a torch module does not exist yet at this point.
            object.__setattr__(self, "config", Config(values, set(values) - given, type(self).__name__))
        init(self, *args, **kwargs)

    return recording_init  # type: ignore[return-value]


class ConfigMixin:
    """An object that is described by a configuration file."""

    config_name: ClassVar[str]
    """Name of the file: "scheduler_config.json", "config.json" or "model_index.json"."""

    convention_options: ClassVar[frozenset[str]] = frozenset()
    """Options that HF diffusers does not know: written to the file only where they differ from the default."""

    config: Config

    @classmethod
    def config_keys(cls) -> dict[str, Any]:
        """The options of the constructor with their defaults (`inspect.Parameter.empty` where there is none)."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """Make an object from a record or a loaded file; `overrides` win over `config`.

        - Keys that start with "_" describe the file and are dropped.
        - Keys of another registered class of the same kind, which published files carry, are dropped with one warning.
        - Any other unknown key raises ConfigError.
        - A `Config` hands over only what was given to its object: the defaults of one class are not choices of another.
          So does a file of this package that another class has written.
        """
        allowed = cls.config_keys()
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        for key in config.defaulted if isinstance(config, Config) else config.get(DEFAULTED, ()):
            # An older default of this very class stays what it was.
            of_this_class = not isinstance(config, Config) and config.get("_class_name") == cls.__name__
            if not of_this_class or _frozen(given.get(key)) == _frozen(allowed.get(key)):
                given.pop(key, None)
        cls._raise_unknown([key for key in overrides if key not in allowed])

        foreign = [key for key in given if key not in allowed]
        if foreign:
            known_elsewhere = cls._keys_of_siblings() | (set(config) if isinstance(config, Config) else set())
            retired = {key for key in foreign if key in RETIRED_KEYS and given[key] in RETIRED_KEYS[key]}
            cls._raise_unknown([key for key in foreign if key not in known_elsewhere | retired])
            logger.warning("%s has no option %s: ignored", cls.__name__, ", ".join(sorted(foreign)))
        arguments = {key: value for key, value in given.items() if key in allowed} | overrides

        missing = [
            key for key, default in allowed.items() if default is inspect.Parameter.empty and key not in arguments
        ]
        if missing:
            raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}, which the config does not hold")
        return cls(**arguments)

    @classmethod
    def _keys_of_siblings(cls) -> set[str]:
        names = registry.CLASSES.get(cls.config_name, {})
        return {key for name in names for key in registry.load_class(name).config_keys()}

    @classmethod
    def _raise_unknown(cls, keys: list[str]) -> None:
        if not keys:
            return
        allowed = sorted(cls.config_keys())
        hints = []
        for key in keys:
            close = difflib.get_close_matches(key, allowed, n=1)
            hints.append(f"{key!r} (did you mean {close[0]!r}?)" if close else repr(key))
        raise ConfigError(f"{cls.__name__} has no option {', '.join(hints)}; allowed: {', '.join(allowed)}")

    @classmethod
    def load_config(cls, path_or_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the configuration file of a folder, or the given file, as it stands. Raises ConfigError."""
        path = Path(path_or_file)
        file = path / cls.config_name if path.is_dir() else path
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{cls.__name__}: there is no configuration file {file}") from None
        except ValueError as error:
            raise ConfigError(f"{cls.__name__}: {file} is not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{cls.__name__}: {file} must hold a JSON object, not a {type(config).__name__}")
        return config

    def save_config(self, folder: str | os.PathLike[str]) -> None:
        """Write `config_name` into `folder` (made if needed); an interrupted call leaves the earlier file."""
        path = Path(folder)
        if path.is_file():
            raise FileExistsError(f"cannot save into {path}: it is a file, a folder is needed")
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / self.config_name, self.to_json_string())

    def to_json_string(self) -> str:
        """The text of the configuration file: options, class name and version of this package, keys sorted."""
        defaults = {key: _frozen(default) for key, default in self.config_keys().items()}
        values = {
            key: value
            for key, value in self.config.items()
            if key not in self.convention_options or value != defaults[key]
        }
        record = {"_class_name": type(self).__name__, "_diffusers_ref_version": __version__, **values}
        if defaulted := sorted(values.keys() & self.config.defaulted):
            record[DEFAULTED] = defaulted
        try:
            return json.dumps(record, indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            raise ConfigError(f"the config of {type(self).__name__} cannot be written as JSON: {error}") from error
