"""The parts of a pipeline: the class that model_index.json means, the files it needs, how it is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from diffusers_ref import registry
from diffusers_ref.configuration import ConfigError
from diffusers_ref.loading import (
    NETWORK_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    choose_weights,
    is_weight_file,
    list_variants,
)
from diffusers_ref.modeling import ModelMixin
from diffusers_ref.sources import LoadingError, Source, check_entry_name

OWN_LIBRARIES = ("diffusers", "diffusers_ref")
"""Libraries that mean this package. HF diffusers' name stands for it, so that folders move both ways."""

DEPRECATED_LIBRARY = "deprecated"
"""What HF diffusers writes for classes of its own that it keeps in folders of this name."""

# Names under which transformers once had a class, and today's.
RENAMED_TRANSFORMERS_CLASSES = {
    "BeitFeatureExtractor": "BeitImageProcessor",
    "ChineseCLIPFeatureExtractor": "ChineseCLIPImageProcessor",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "ConvNextFeatureExtractor": "ConvNextImageProcessor",
    "DeiTFeatureExtractor": "DeiTImageProcessor",
    "DPTFeatureExtractor": "DPTImageProcessor",
    "ViTFeatureExtractor": "ViTImageProcessor",
}

# What some releases of transformers add to the name of an image processor where torchvision is not installed.
_PIL_BACKEND = "Pil"


def find_class(library: str, class_name: str, pipeline_class: type | None = None) -> Any:
    """The class that `[library, class_name]` means in model_index.json. Raises ConfigError.

    library: "diffusers", "diffusers_ref", "transformers", or a folder of diffusers_ref/pipelines; no other is imported.
    pipeline_class: whose component it is; a class of an unknown library is looked up in the file that defines this one.
    """
    if library == "transformers":
        return _find_transformers_class(class_name)
    module = registry.MODULE_OF_CLASS.get(class_name)
    folders = sorted({each.split(".")[2] for each in registry.CLASSES["model_index.json"].values()})
    if library not in (*OWN_LIBRARIES, DEPRECATED_LIBRARY, *folders):
        beside = getattr(sys.modules.get(pipeline_class.__module__), class_name, None) if pipeline_class else None
        if isinstance(beside, type) and pipeline_class and beside.__module__ == pipeline_class.__module__:
            return beside
        raise ConfigError(
            f"{library!r}, the library of {class_name}, is unknown; allowed: "
            f"{', '.join([*OWN_LIBRARIES, 'transformers', *folders])}. "
            "Code that comes with a folder is not run: make the component yourself and pass it by keyword"
        )
    if module is None or (library in folders and not module.startswith(f"diffusers_ref.pipelines.{library}.")):
        known = sorted(name for kind in ("config.json", "scheduler_config.json") for name in registry.CLASSES[kind])
        raise ConfigError(f"there is no class {class_name!r} in {library!r}; known components: {', '.join(known)}")
    return registry.load_class(class_name)


def _find_transformers_class(class_name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"the component class {class_name} needs the package transformers: {error}") from error
    names = [class_name, RENAMED_TRANSFORMERS_CLASSES.get(class_name, ""), class_name.removesuffix(_PIL_BACKEND)]
    public = (getattr(transformers, name, None) for name in names if name and not name.startswith("_"))
    found = next((value for value in public if value is not None), None)
    if not (isinstance(found, type) and hasattr(found, "from_pretrained") and hasattr(found, "save_pretrained")):
        raise ConfigError(f"transformers {transformers.__version__} has no loadable class {class_name!r}")
    return found


def _dtype_keyword() -> str:
    """What `from_pretrained` of the installed transformers calls the dtype."""
    import transformers
    from packaging.version import Version

    return "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def entry_of(component: Any) -> tuple[str | None, str | None]:
    """What model_index.json says of a component: (library, class name), (None, None) if there is no component."""
    if component is None:
        return None, None
    cls = type(component)
    if registry.MODULE_OF_CLASS.get(cls.__name__) == cls.__module__:
        return ("diffusers_ref" if cls.__name__ in registry.ONLY_HERE else "diffusers"), cls.__name__
    library = cls.__module__.split(".")[0]
    return library, cls.__name__.removesuffix(_PIL_BACKEND) if library == "transformers" else cls.__name__


def is_entry(value: Any) -> bool:
    """Whether a value of model_index.json describes a component: two names, or two nulls for none."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and (all(isinstance(part, str) for part in value) or value[0] is value[1] is None)
    )


class ComponentFiles:
    """The files of one component within a folder or repository.

    They are in a subfolder of the component's name, or, as in the oldest published folders, beside model_index.json.
    """

    def __init__(self, source: Source, name: str, cls: Any, variant: str | None) -> None:
        names = source.entries(check_entry_name(name, "component"))
        self.cls = cls
        self.subfolder = name if names else ""
        names = names or source.entries()
        is_network = isinstance(cls, type) and issubclass(cls, ModelMixin)
        self._kinds = NETWORK_WEIGHTS if is_network else TRANSFORMERS_WEIGHTS
        self.variants = list_variants(names, self._kinds)
        self.variant = variant if variant in self.variants else None
        chosen = choose_weights(names, self.variant, self._kinds)
        config_name = getattr(cls, "config_name", None) if cls.__module__.startswith("diffusers_ref.") else None
        if config_name is not None:
            if config_name not in names:
                raise LoadingError(
                    f"{source}: neither {name}/{config_name} nor {config_name} is there, {cls.__name__} needs it"
                )
            wanted = [config_name, *(chosen if is_network else [])]
        else:  # A class of transformers: its configuration, vocabulary and so on, but no code and no other weights.
            wanted = [each for each in names if not is_weight_file(each) and not each.endswith(".py")] + chosen
        self.wanted = [f"{self.subfolder}/{each}" if self.subfolder else each for each in wanted]

    def load(self, folder: Any, torch_dtype: torch.dtype | None) -> Any:
        """Make the component from `folder`, which holds the wanted files."""
        options: dict[str, Any] = {}
        if isinstance(self.cls, type) and issubclass(self.cls, torch.nn.Module):
            options["torch_dtype" if issubclass(self.cls, ModelMixin) else _dtype_keyword()] = (
                torch_dtype or torch.get_default_dtype()
            )
            if self.variant is not None:
                options["variant"] = self.variant
        return self.cls.from_pretrained(folder / self.subfolder, **options)


def plan_components(
    source: Source,
    entries: Mapping[str, tuple[str | None, str | None]],
    variant: str | None,
    pipeline_class: type | None = None,
) -> dict[str, ComponentFiles | None]:
    """Find class and files of every entry of model_index.json; None where the entry says that there is no component.

    A component without weights of the `variant` is loaded from its plain ones; if none has it, LoadingError.
    """
    plans = {
        name: None
        if library is None or cls is None
        else ComponentFiles(source, name, find_class(library, cls, pipeline_class), variant)
        for name, (library, cls) in entries.items()
    }
    if variant and not any(plan and plan.variant for plan in plans.values()):
        present = sorted({each for plan in plans.values() if plan for each in plan.variants})
        raise LoadingError(
            f"{source}: no weights of variant {variant!r}; variants present: {', '.join(present) or 'none'}"
        )
    return plans
