"""Diffusion pipelines and schedulers that compute what the papers' own code computes.

Names, defaults and file formats follow HF diffusers. Nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffusers_ref.registry import MODULE_OF_CLASS
from diffusers_ref.version import __version__

_MODULE_OF_NAME = {
    **MODULE_OF_CLASS,
    "Config": "diffusers_ref.configuration",
    "ConfigError": "diffusers_ref.configuration",
    "ConfigMixin": "diffusers_ref.configuration",
    "DiffusionPipeline": "diffusers_ref.pipeline",
    "ImagePipelineOutput": "diffusers_ref.outputs",
    "LoadingError": "diffusers_ref.loading",
    "ModelMixin": "diffusers_ref.modeling",
    "SchedulerMixin": "diffusers_ref.schedulers.scheduler",
    "WeightsError": "diffusers_ref.loading",
    "register_to_config": "diffusers_ref.configuration",
}

__all__ = ["__version__", *sorted(_MODULE_OF_NAME)]

if TYPE_CHECKING:
    from diffusers_ref.configuration import Config as Config
    from diffusers_ref.configuration import ConfigError as ConfigError
    from diffusers_ref.configuration import ConfigMixin as ConfigMixin
    from diffusers_ref.configuration import register_to_config as register_to_config
    from diffusers_ref.loading import LoadingError as LoadingError
    from diffusers_ref.loading import WeightsError as WeightsError
    from diffusers_ref.modeling import ModelMixin as ModelMixin
    from diffusers_ref.models.ncsnpp import NCSNppModel as NCSNppModel
    from diffusers_ref.models.unet_2d import UNet2DModel as UNet2DModel
    from diffusers_ref.outputs import ImagePipelineOutput as ImagePipelineOutput
    from diffusers_ref.pipeline import DiffusionPipeline as DiffusionPipeline
    from diffusers_ref.pipelines.ddim.pipeline import DDIMPipeline as DDIMPipeline
    from diffusers_ref.pipelines.ddpm.pipeline import DDPMPipeline as DDPMPipeline
    from diffusers_ref.pipelines.karras_ve.pipeline import KarrasVePipeline as KarrasVePipeline
    from diffusers_ref.pipelines.pndm.pipeline import PNDMPipeline as PNDMPipeline
    from diffusers_ref.pipelines.score_sde_ve.pipeline import ScoreSdeVePipeline as ScoreSdeVePipeline
    from diffusers_ref.pipelines.score_sde_vp.pipeline import ScoreSdeVpPipeline as ScoreSdeVpPipeline
    from diffusers_ref.schedulers.consistency import CMStochasticIterativeScheduler as CMStochasticIterativeScheduler
    from diffusers_ref.schedulers.ddim import DDIMScheduler as DDIMScheduler
    from diffusers_ref.schedulers.ddpm import DDPMScheduler as DDPMScheduler
    from diffusers_ref.schedulers.deis import DEISMultistepScheduler as DEISMultistepScheduler
    from diffusers_ref.schedulers.deis_runge_kutta import DEISRungeKuttaScheduler as DEISRungeKuttaScheduler
    from diffusers_ref.schedulers.dpm_adaptive import DPMAdaptiveScheduler as DPMAdaptiveScheduler
    from diffusers_ref.schedulers.dpm_fast import DPMFastScheduler as DPMFastScheduler
    from diffusers_ref.schedulers.dpm_solver_adaptive import DPMSolverAdaptiveScheduler as DPMSolverAdaptiveScheduler
    from diffusers_ref.schedulers.dpm_solver_multistep import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from diffusers_ref.schedulers.dpm_solver_singlestep import (
        DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler,
    )
    from diffusers_ref.schedulers.dpmpp_2m import DPMPP2MScheduler as DPMPP2MScheduler
    from diffusers_ref.schedulers.dpmpp_2m_sde import DPMPP2MSDEScheduler as DPMPP2MSDEScheduler
    from diffusers_ref.schedulers.dpmpp_2s_ancestral import DPMPP2SAncestralScheduler as DPMPP2SAncestralScheduler
    from diffusers_ref.schedulers.dpmpp_3m_sde import DPMPP3MSDEScheduler as DPMPP3MSDEScheduler
    from diffusers_ref.schedulers.dpmsolver_sde import DPMSolverSDEScheduler as DPMSolverSDEScheduler
    from diffusers_ref.schedulers.edm_ablation import EDMAblationScheduler as EDMAblationScheduler
    from diffusers_ref.schedulers.edm_euler import EDMEulerScheduler as EDMEulerScheduler
    from diffusers_ref.schedulers.edm_heun import EDMHeunScheduler as EDMHeunScheduler
    from diffusers_ref.schedulers.euler_ancestral_discrete import (
        EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
    )
    from diffusers_ref.schedulers.euler_discrete import EulerDiscreteScheduler as EulerDiscreteScheduler
    from diffusers_ref.schedulers.flow_match_dpmpp_2m import FlowMatchDPMPP2MScheduler as FlowMatchDPMPP2MScheduler
    from diffusers_ref.schedulers.flow_match_euler import (
        FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler,
    )
    from diffusers_ref.schedulers.flow_match_heun import (
        FlowMatchHeunDiscreteScheduler as FlowMatchHeunDiscreteScheduler,
    )
    from diffusers_ref.schedulers.heun_discrete import HeunDiscreteScheduler as HeunDiscreteScheduler
    from diffusers_ref.schedulers.ipndm import IPNDMScheduler as IPNDMScheduler
    from diffusers_ref.schedulers.k_dpm_2_ancestral_discrete import (
        KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler,
    )
    from diffusers_ref.schedulers.k_dpm_2_discrete import KDPM2DiscreteScheduler as KDPM2DiscreteScheduler
    from diffusers_ref.schedulers.karras_ve import KarrasVeScheduler as KarrasVeScheduler
    from diffusers_ref.schedulers.lcm import LCMScheduler as LCMScheduler
    from diffusers_ref.schedulers.lms_discrete import LMSDiscreteScheduler as LMSDiscreteScheduler
    from diffusers_ref.schedulers.pndm import PNDMScheduler as PNDMScheduler
    from diffusers_ref.schedulers.scheduler import SchedulerMixin as SchedulerMixin
    from diffusers_ref.schedulers.score_sde_ode import ScoreSdeOdeScheduler as ScoreSdeOdeScheduler
    from diffusers_ref.schedulers.score_sde_sub_vp import ScoreSdeSubVpScheduler as ScoreSdeSubVpScheduler
    from diffusers_ref.schedulers.score_sde_ve import ScoreSdeVeScheduler as ScoreSdeVeScheduler
    from diffusers_ref.schedulers.score_sde_vp import ScoreSdeVpScheduler as ScoreSdeVpScheduler
    from diffusers_ref.schedulers.unipc import UniPCMultistepScheduler as UniPCMultistepScheduler


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
