"""Recorders: one module per original code base. They run it and write fixtures, and never import diffusers_ref."""

from __future__ import annotations

import importlib
from types import ModuleType

from conformance.errors import ConformanceError

# system -> module; a module is imported only when its system is recorded.
RECORDERS = {
    "ddim": "ermongroup_ddim",
    "ddpm": "hojonathanho_diffusion",
    "improved-diffusion": "openai_improved_diffusion",
    "latent-diffusion": "compvis_latent_diffusion",
    "pndm": "lupingliu_pndm",
}


def load_recorder(system: str) -> ModuleType:
    """The recorder module of `system`.

    Raises:
        ConformanceError: unknown system; names the known ones.
    """
    if system not in RECORDERS:
        raise ConformanceError(f"no recorder for {system!r}; known systems: {', '.join(RECORDERS)}")
    return importlib.import_module(f"conformance.recorders.{RECORDERS[system]}")
