"""Schedulers: one sampling algorithm per file, read beside its paper."""

from __future__ import annotations

from diffusers_ref.schedulers.consistency import CMStochasticIterativeScheduler
from diffusers_ref.schedulers.ddim import DDIMScheduler
from diffusers_ref.schedulers.ddpm import DDPMScheduler
from diffusers_ref.schedulers.deis import DEISMultistepScheduler
from diffusers_ref.schedulers.deis_runge_kutta import DEISRungeKuttaScheduler
from diffusers_ref.schedulers.dpm_adaptive import DPMAdaptiveScheduler
from diffusers_ref.schedulers.dpm_fast import DPMFastScheduler
from diffusers_ref.schedulers.dpm_solver_adaptive import DPMSolverAdaptiveScheduler
from diffusers_ref.schedulers.dpm_solver_multistep import DPMSolverMultistepScheduler
from diffusers_ref.schedulers.dpm_solver_singlestep import DPMSolverSinglestepScheduler
from diffusers_ref.schedulers.dpmpp_2m import DPMPP2MScheduler
from diffusers_ref.schedulers.dpmpp_2m_sde import DPMPP2MSDEScheduler
from diffusers_ref.schedulers.dpmpp_2s_ancestral import DPMPP2SAncestralScheduler
from diffusers_ref.schedulers.dpmpp_3m_sde import DPMPP3MSDEScheduler
from diffusers_ref.schedulers.dpmsolver_sde import DPMSolverSDEScheduler
from diffusers_ref.schedulers.edm_ablation import EDMAblationScheduler
from diffusers_ref.schedulers.edm_euler import EDMEulerScheduler
from diffusers_ref.schedulers.edm_heun import EDMHeunScheduler
from diffusers_ref.schedulers.euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers_ref.schedulers.euler_discrete import EulerDiscreteScheduler
from diffusers_ref.schedulers.flow_match_dpmpp_2m import FlowMatchDPMPP2MScheduler
from diffusers_ref.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from diffusers_ref.schedulers.flow_match_heun import FlowMatchHeunDiscreteScheduler
from diffusers_ref.schedulers.heun_discrete import HeunDiscreteScheduler
from diffusers_ref.schedulers.ipndm import IPNDMScheduler
from diffusers_ref.schedulers.k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from diffusers_ref.schedulers.k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers_ref.schedulers.karras_ve import KarrasVeScheduler
from diffusers_ref.schedulers.lcm import LCMScheduler
from diffusers_ref.schedulers.lms_discrete import LMSDiscreteScheduler
from diffusers_ref.schedulers.pndm import PNDMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput
from diffusers_ref.schedulers.score_sde_ode import ScoreSdeOdeScheduler
from diffusers_ref.schedulers.score_sde_sub_vp import ScoreSdeSubVpScheduler
from diffusers_ref.schedulers.score_sde_ve import ScoreSdeVeScheduler
from diffusers_ref.schedulers.score_sde_vp import ScoreSdeVpScheduler
from diffusers_ref.schedulers.unipc import UniPCMultistepScheduler

__all__ = [
    "CMStochasticIterativeScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DEISRungeKuttaScheduler",
    "DPMAdaptiveScheduler",
    "DPMFastScheduler",
    "DPMPP2MSDEScheduler",
    "DPMPP2MScheduler",
    "DPMPP2SAncestralScheduler",
    "DPMPP3MSDEScheduler",
    "DPMSolverAdaptiveScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMAblationScheduler",
    "EDMEulerScheduler",
    "EDMHeunScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchDPMPP2MScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SchedulerMixin",
    "SchedulerOutput",
    "ScoreSdeOdeScheduler",
    "ScoreSdeSubVpScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "UniPCMultistepScheduler",
]
