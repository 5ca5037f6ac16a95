"""The base of all pipelines: components under one roof, loaded from and saved to folders."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffusers_ref import registry
from diffusers_ref.components import entry_of, is_entry, plan_components
from diffusers_ref.configuration import Config, ConfigError, ConfigMixin
from diffusers_ref.custom_code import find_pipeline_file, load_pipeline_class
from diffusers_ref.loading import is_network_weight
from diffusers_ref.saving import replaced_folder
from diffusers_ref.sources import LoadingError, PathOrName, check_entry_name, open_source

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

StepCallback = Callable[[Any, int, Any, dict[str, Any]], "dict[str, Any] | None"]
"""callback_on_step_end(pipeline, step index, timestep, {"sample": x}) -> None, or {"sample": x'} to go on from x'."""


class DiffusionPipeline(ConfigMixin):
    """Networks, a scheduler and whatever else belongs to one way of sampling.

    A subclass takes its components in the constructor and hands them to `register_modules`; any other argument of the
    constructor is an option, kept as an attribute of the same name. model_index.json names the class of each component.
    """

    config_name: ClassVar[str] = "model_index.json"

    # --- components --------------------------------------------------------------------------------------------------

    def register_modules(self, **components: Any) -> None:
        """Make the components attributes of the pipeline; None stands for a component that is left out."""
        for name, component in components.items():
            check_entry_name(name, "component")
            setattr(self, name, component)
        self._component_names = (*self.__dict__.get("_component_names", ()), *components)

    @property
    def components(self) -> dict[str, Any]:
        """The components by name; `OtherPipeline(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self._component_names}

    @property
    def config(self) -> Config:  # type: ignore[override]
        """The class of every component, as (library, class name), and the options."""
        components = {name: entry_of(component) for name, component in self.components.items()}
        defaults = {name: default for name, default in self.config_keys().items() if name not in components}
        options = {name: getattr(self, name) for name in defaults}
        defaulted = {name for name, value in options.items() if value == defaults[name]}
        return Config({**components, **options}, defaulted, type(self).__name__)

    def _networks(self) -> list[torch.nn.Module]:
        return [component for component in self.components.values() if isinstance(component, torch.nn.Module)]

    @property
    def device(self) -> torch.device:
        """The device of the first network."""
        parameters = (parameter for network in self._networks() for parameter in network.parameters())
        return next((parameter.device for parameter in parameters), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the first network."""
        parameters = (parameter for network in self._networks() for parameter in network.parameters())
        return next((each.dtype for each in parameters if each.is_floating_point()), torch.get_default_dtype())

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the networks, with the arguments of `torch.nn.Module.to` (device, dtype or both); returns itself."""
        for network in self._networks():
            network.to(*args, **kwargs)
        return self

    # --- progress ----------------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm for the bars of this pipeline, for example `disable=True`."""
        self._progress_options = options

    def progress_bar(self, steps: Iterable[Any], total: int | None = None) -> Iterable[Any]:
        """`steps`, with a bar that follows them."""
        options = self.__dict__.get("_progress_options", {})
        if options.get("disable"):
            return steps
        from tqdm.auto import tqdm

        return tqdm(steps, total=total, **options)

    # --- folders -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: PathOrName,
        *,
        revision: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        cache_dir: PathOrName | None = None,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        custom_pipeline: PathOrName | None = None,
        custom_revision: str | None = None,
        trust_remote_code: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load a pipeline from a folder or a Hub repository; only the files that are needed are downloaded.

        `DiffusionPipeline.from_pretrained` makes the class that model_index.json names, a subclass makes itself.

        revision, cache_dir, local_files_only, token: as in huggingface_hub.
        variant: weight files of this name ("fp16"); a component that has none uses its plain ones.
        torch_dtype: dtype of the networks, by default torch's default dtype.
        overrides: components (not loaded then) and options of the constructor.
        custom_pipeline: a Python file with the pipeline class, a folder with a pipeline.py, or the id of a Hub
            repository with one; that needs trust_remote_code=True and custom_revision=<commit hash> (or revision).

        Raises LoadingError (something is not there), ConfigError (the file or an argument names something unknown),
        WeightsError (weights that do not fit).
        """
        hub = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        source = open_source(name_or_path, revision=revision, **hub)  # type: ignore[arg-type]
        if cls.config_name not in source.entries():
            raise LoadingError(
                f"{source} holds no {cls.config_name}, so it is not a pipeline; a network or a scheduler alone is "
                "loaded with its own class, an original checkpoint with from_single_file"
            )
        index = cls.load_config(source.fetch([cls.config_name]))

        pipeline_class: Any  # Of the class cls, or of one that it stands for.
        if custom_pipeline is not None:
            file = find_pipeline_file(
                custom_pipeline, trust_remote_code=trust_remote_code, revision=custom_revision or revision, **hub
            )
            pipeline_class = load_pipeline_class(file, _class_name(index))
        else:
            pipeline_class = (
                cls if cls is not DiffusionPipeline else _registered_pipeline(_class_name(index), str(source))
            )

        arguments = pipeline_class._constructor_arguments(index, overrides, str(source))
        entries = {name: value for name, value in arguments.items() if name not in overrides and is_entry(value)}
        plans = plan_components(source, entries, variant, pipeline_class)
        folder = source.fetch(name for plan in plans.values() if plan for name in plan.wanted)
        for name, plan in plans.items():
            arguments[name] = plan.load(folder, torch_dtype) if plan else None
        return pipeline_class(**arguments)

    @classmethod
    def _constructor_arguments(cls, index: dict[str, Any], overrides: dict[str, Any], source: str) -> dict[str, Any]:
        """Entries and options out of model_index.json, with the overrides, all of them known to the constructor.

        A component that the constructor does not know is an error; an unknown option, or an entry that says that there
        is no component, is dropped with one warning: HF diffusers writes such of its own ("requires_safety_checker").
        """
        given = {key: value for key, value in index.items() if not key.startswith("_")}
        allowed = cls.config_keys()
        foreign = [key for key in given if key not in allowed]
        components = [key for key in foreign if is_entry(given[key]) and any(given[key])]
        cls._raise_unknown([*(key for key in overrides if key not in allowed), *components])
        if foreign:
            logger.warning("%s: %s has no option %s: ignored", source, cls.__name__, ", ".join(sorted(foreign)))
        given = {key: value for key, value in given.items() if key in allowed} | overrides
        missing = [key for key, default in allowed.items() if default is inspect.Parameter.empty and key not in given]
        if missing:
            raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}: not in {source}; pass it by keyword")
        return given

    def save_pretrained(self, folder: PathOrName, *, variant: str | None = None) -> None:
        """Write model_index.json and every component in a folder of its name, completely or not at all.

        Other files of an existing folder stay; an interrupted call leaves it as it was.
        variant: a name that the weight files carry, for example "fp16".
        """
        with replaced_folder(folder, discard=lambda name: is_network_weight(name, variant)) as temporary:
            for name, component in self.components.items():
                if component is None:
                    continue
                takes_variant = isinstance(component, torch.nn.Module) and variant is not None
                component.save_pretrained(temporary / name, **({"variant": variant} if takes_variant else {}))
            self.save_config(temporary)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample. Every pipeline defines its own arguments."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


def _class_name(index: dict[str, Any]) -> str | None:
    """The pipeline class that model_index.json names; HF diffusers writes [file, class] for one from a custom file."""
    name = index.get("_class_name")
    return name[1] if isinstance(name, list) and len(name) == 2 else name


def _registered_pipeline(name: str | None, source: str) -> type[DiffusionPipeline]:
    known = registry.CLASSES["model_index.json"]
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"the model_index.json of {source} names the pipeline class {name!r}; known: {', '.join(sorted(known))}. "
            "A class of your own is loaded with custom_pipeline='path/to/file.py'"
        )
    found: type[DiffusionPipeline] = registry.load_class(name)
    return found
