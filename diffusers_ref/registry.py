"""The classes of this package by name, and where each lives.

A name found in a file (`_class_name`, an entry of model_index.json) is looked up here and nowhere else, so a file can
only choose among these classes, never make Python import a module of its choice.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Class name -> module that defines it, by the configuration file in which such a class is described.
CLASSES: dict[str, dict[str, str]] = {
    "scheduler_config.json": {
        "CMStochasticIterativeScheduler": "diffusers_ref.schedulers.consistency",
        "DDIMScheduler": "diffusers_ref.schedulers.ddim",
        "DDPMScheduler": "diffusers_ref.schedulers.ddpm",
        "DEISMultistepScheduler": "diffusers_ref.schedulers.deis",
        "DEISRungeKuttaScheduler": "diffusers_ref.schedulers.deis_runge_kutta",
        "DPMAdaptiveScheduler": "diffusers_ref.schedulers.dpm_adaptive",
        "DPMFastScheduler": "diffusers_ref.schedulers.dpm_fast",
        "DPMPP2MSDEScheduler": "diffusers_ref.schedulers.dpmpp_2m_sde",
        "DPMPP2MScheduler": "diffusers_ref.schedulers.dpmpp_2m",
        "DPMPP2SAncestralScheduler": "diffusers_ref.schedulers.dpmpp_2s_ancestral",
        "DPMPP3MSDEScheduler": "diffusers_ref.schedulers.dpmpp_3m_sde",
        "DPMSolverSDEScheduler": "diffusers_ref.schedulers.dpmsolver_sde",
        "DPMSolverMultistepScheduler": "diffusers_ref.schedulers.dpm_solver_multistep",
        "DPMSolverSinglestepScheduler": "diffusers_ref.schedulers.dpm_solver_singlestep",
        "DPMSolverAdaptiveScheduler": "diffusers_ref.schedulers.dpm_solver_adaptive",
        "EDMAblationScheduler": "diffusers_ref.schedulers.edm_ablation",
        "EDMEulerScheduler": "diffusers_ref.schedulers.edm_euler",
        "EDMHeunScheduler": "diffusers_ref.schedulers.edm_heun",
        "EulerAncestralDiscreteScheduler": "diffusers_ref.schedulers.euler_ancestral_discrete",
        "EulerDiscreteScheduler": "diffusers_ref.schedulers.euler_discrete",
        "FlowMatchDPMPP2MScheduler": "diffusers_ref.schedulers.flow_match_dpmpp_2m",
        "FlowMatchEulerDiscreteScheduler": "diffusers_ref.schedulers.flow_match_euler",
        "FlowMatchHeunDiscreteScheduler": "diffusers_ref.schedulers.flow_match_heun",
        "HeunDiscreteScheduler": "diffusers_ref.schedulers.heun_discrete",
        "IPNDMScheduler": "diffusers_ref.schedulers.ipndm",
        "KDPM2AncestralDiscreteScheduler": "diffusers_ref.schedulers.k_dpm_2_ancestral_discrete",
        "KDPM2DiscreteScheduler": "diffusers_ref.schedulers.k_dpm_2_discrete",
        "KarrasVeScheduler": "diffusers_ref.schedulers.karras_ve",
        "LCMScheduler": "diffusers_ref.schedulers.lcm",
        "LMSDiscreteScheduler": "diffusers_ref.schedulers.lms_discrete",
        "PNDMScheduler": "diffusers_ref.schedulers.pndm",
        "ScoreSdeOdeScheduler": "diffusers_ref.schedulers.score_sde_ode",
        "ScoreSdeSubVpScheduler": "diffusers_ref.schedulers.score_sde_sub_vp",
        "ScoreSdeVeScheduler": "diffusers_ref.schedulers.score_sde_ve",
        "ScoreSdeVpScheduler": "diffusers_ref.schedulers.score_sde_vp",
        "UniPCMultistepScheduler": "diffusers_ref.schedulers.unipc",
    },
    "config.json": {
        "NCSNppModel": "diffusers_ref.models.ncsnpp",
        "UNet2DModel": "diffusers_ref.models.unet_2d",
    },
    "model_index.json": {
        "DDIMPipeline": "diffusers_ref.pipelines.ddim.pipeline",
        "DDPMPipeline": "diffusers_ref.pipelines.ddpm.pipeline",
        "KarrasVePipeline": "diffusers_ref.pipelines.karras_ve.pipeline",
        "PNDMPipeline": "diffusers_ref.pipelines.pndm.pipeline",
        "ScoreSdeVePipeline": "diffusers_ref.pipelines.score_sde_ve.pipeline",
        "ScoreSdeVpPipeline": "diffusers_ref.pipelines.score_sde_vp.pipeline",
    },
}

# Everything above, in one mapping.
MODULE_OF_CLASS: dict[str, str] = {name: module for kind in CLASSES.values() for name, module in kind.items()}

# Classes that HF diffusers does not have under the same name: folders name them with the library "diffusers_ref".
ONLY_HERE: frozenset[str] = frozenset(
    {
        "DEISRungeKuttaScheduler",
        "DPMAdaptiveScheduler",
        "DPMFastScheduler",
        "DPMSolverAdaptiveScheduler",
        "DPMPP2MSDEScheduler",
        "DPMPP2MScheduler",
        "DPMPP2SAncestralScheduler",
        "DPMPP3MSDEScheduler",
        "EDMAblationScheduler",
        "EDMHeunScheduler",
        "FlowMatchDPMPP2MScheduler",
        "NCSNppModel",
        "ScoreSdeOdeScheduler",
        "ScoreSdeSubVpScheduler",
        "ScoreSdeVpPipeline",
    }
)


def load_class(name: str) -> Any:
    """The class registered under `name`. Raises KeyError if there is none."""
    return getattr(import_module(MODULE_OF_CLASS[name]), name)
