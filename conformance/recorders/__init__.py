"""Recorders: one module per original code base. They run it and write fixtures, and never import diffusers_ref.

A recorder module, of this package or a file of the user's own, has
- `ORIGINAL`, an `Original`: which code base, at which commit (or content, see `folder.py`), for which paper;
- `original(source)`, a context manager that imports from the checkout and yields what the cases need;
- `cases(code)`, which yields the cases, given that: `SchedulerCase`, `ModelCase` or `PipelineCase`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from conformance.errors import ConformanceError

# system -> module; a module is imported only when its system is recorded.
RECORDERS = {
    "consistency-models": "openai_consistency_models",
    "dpm-solver": "luchengthu_dpm_solver",
    "ddim": "ermongroup_ddim",
    "ddpm": "hojonathanho_diffusion",
    "edm": "nvlabs_edm",
    "deis": "qsh_zh_deis",
    "dit": "facebookresearch_dit",
    "guided-diffusion": "openai_guided_diffusion",
    "flux": "black_forest_labs_flux",
    "improved-diffusion": "openai_improved_diffusion",
    "k-diffusion": "crowsonkb_k_diffusion",
    "latent-diffusion": "compvis_latent_diffusion",
    "lcm": "luosiallen_lcm",
    "pndm": "lupingliu_pndm",
    "score-sde": "yang_song_score_sde",
    "sd3.5": "stability_sd35",
    "unipc": "wl_zhao_unipc",
    "v-diffusion": "crowsonkb_v_diffusion",
}


PARTS = ("ORIGINAL", "original", "cases")


def load_recorder(system: str) -> ModuleType:
    """The recorder of `system`: a name of `RECORDERS`, or `path/to/recorder.py`, which is executed.

    Raises:
        ConformanceError: unknown system (names the known ones), no such file, or a file that is no recorder.
    """
    if system.endswith(".py"):
        return _load_file(Path(system))
    if system not in RECORDERS:
        known = ", ".join(RECORDERS)
        raise ConformanceError(f"no recorder for {system!r}; known systems: {known}; or give path/to/recorder.py")
    return importlib.import_module(f"conformance.recorders.{RECORDERS[system]}")


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConformanceError(f"{path}: no such recorder file")
    name = f"conformance_recorder_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up there.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConformanceError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    if missing := [part for part in PARTS if not hasattr(module, part)]:
        raise ConformanceError(f"{path} is no recorder: it has no {', '.join(missing)}; needed: {', '.join(PARTS)}")
    return module
