"""Pipeline classes from Python files that the user names.

Code runs only when asked for by name: a local file, the pipeline.py of a folder, or of a Hub repository at one commit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_ref.configuration import ConfigError
from diffusers_ref.sources import LoadingError, PathOrName, open_source

if TYPE_CHECKING:
    from diffusers_ref.pipeline import DiffusionPipeline

PIPELINE_FILE = "pipeline.py"


def find_pipeline_file(
    custom_pipeline: PathOrName, *, trust_remote_code: bool, revision: str | None, **hub_options: Any
) -> Path:
    """The Python file that `custom_pipeline` names: a .py file, or the pipeline.py of a folder or of a Hub repository.

    A repository needs `trust_remote_code=True` and a full commit hash as revision, so that the code read once is
    the code that runs. hub_options: cache_dir, local_files_only, token. Raises LoadingError, ConfigError.
    """
    path = Path(custom_pipeline).expanduser()
    if path.is_dir():
        path = path / PIPELINE_FILE
    if path.is_file() and path.suffix == ".py":
        return path
    name = os.fspath(custom_pipeline)
    if path.suffix == ".py" or path.exists():
        raise LoadingError(f"custom_pipeline={name!r}: there is no Python file {path}")

    source = open_source(custom_pipeline, revision=revision, **hub_options)
    if not trust_remote_code:
        raise ConfigError(
            f"custom_pipeline={name!r} would run code from the Hub: read it, then pass trust_remote_code=True"
        )
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ConfigError(
            f"custom_pipeline={name!r} needs a pinned revision: custom_revision must be a commit hash of 40 digits, "
            f"not {revision!r}"
        )
    if PIPELINE_FILE not in source.entries():
        raise LoadingError(f"custom_pipeline={name!r}: {source} has no {PIPELINE_FILE}")
    return source.fetch([PIPELINE_FILE]) / PIPELINE_FILE


def load_pipeline_class(file: Path, class_name: str | None = None) -> type[DiffusionPipeline]:
    """Run a Python file and return the pipeline class it defines (the one named `class_name` if it defines several)."""
    from diffusers_ref.pipeline import DiffusionPipeline

    file = file.absolute()  # Not resolve: the Hub's cache links to files without a suffix.
    module_name = f"diffusers_ref_custom_{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise LoadingError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses and pickle look their module up there.
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, DiffusionPipeline) and value.__module__ == module_name
    }
    if class_name in found:
        return found[class_name]
    if len(found) != 1:
        what = f"several pipeline classes ({', '.join(found)})" if found else "no pipeline class"
        raise ConfigError(f"{file} defines {what}; one subclass of diffusers_ref.DiffusionPipeline is needed")
    return next(iter(found.values()))
