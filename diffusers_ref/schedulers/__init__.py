"""Schedulers: one sampling algorithm per file, read beside its paper."""

from __future__ import annotations

from diffusers_ref.schedulers.ddim import DDIMScheduler
from diffusers_ref.schedulers.ddpm import DDPMScheduler
from diffusers_ref.schedulers.pndm import PNDMScheduler
from diffusers_ref.schedulers.scheduler import SchedulerMixin, SchedulerOutput

__all__ = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "SchedulerMixin", "SchedulerOutput"]
