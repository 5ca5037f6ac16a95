"""One small fault in a sampler of flows or of consistency models: each is seen at the output where it begins."""

from __future__ import annotations

from types import ModuleType

import pytest
from planted import WithScheduler, planted

from conformance.compare import Verdict
from conformance.library import open_library
from conformance.replay import Settings, replay
from diffusers_ref.schedulers import consistency, flow_match_dpmpp_2m, flow_match_euler, lcm

FAULTS = [
    (flow_match_euler, "a step away from the data", "flux/dev-1024-3",
     "x + c.move * velocity", "x - c.move * velocity", ("step", 0)),
    (flow_match_euler, "the level of the step before", "flux/dev-1024-3",
     "sigmas.diff()", "sigmas.diff().roll(1)", ("step", 0)),
    # The first level, 1, is float16 as it is.
    (flow_match_euler, "sigma not rounded", "sd3.5/euler-shift-3-4-float16",
     "velocity * c.rounded_sigma", "velocity * c.sigma", ("step", 1)),
    (flow_match_dpmpp_2m, "the estimate kept instead of x0", "sd3.5/dpmpp-2m-shift-2.37-8",
     "self._earlier = denoised", "self._earlier = estimate", ("step", 2)),
    (flow_match_dpmpp_2m, "a ratio upside down", "sd3.5/dpmpp-2m-shift-2.37-8",
     "h.roll(1) / h", "h / h.roll(1)", ("step", 1)),
    (lcm, "the published grid", "lcm/4-of-50",
     "origin[:: len(origin) // count][:count]", "origin[1 :: len(origin) // count][:count]", ("timesteps", 0)),
    (lcm, "no draw in the last step", "lcm/4-of-50-from-0.8",
     "(self.config.final_draw and index > 0)", "False", None),
    (lcm, "the level of the timestep itself", "lcm/6-of-50-linear-v",
     "signal.roll(-1), noise.roll(-1)", "signal, noise", ("step", 0)),
    (consistency, "noise of the next level alone", "consistency-models/multistep-40-ts-0-22-39",
     "** 2 - least**2)", "** 2)", ("step", 0)),
    (consistency, "the input scaled by sigma alone", "consistency-models/onestep-40",
     "c_in = 1 / (sigma**2 + self.config.sigma_data**2)", "c_in = 1 / (sigma**2)", ("sample", 0)),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "case", "old", "new", "first"), FAULTS, ids=lambda value: str(value)[:40])
def test_fault(module: ModuleType, name: str, case: str, old: str, new: str, first: tuple[str, int] | None) -> None:
    result = replay(open_library().get(case), WithScheduler(planted(module, old, new)), Settings.of())

    assert result.verdict is Verdict.DIVERGENT, result.message
    found = result.first_divergence
    assert (None if found is None else (found.output, found.step)) == first
    assert (result.draws_match is False) == (first is None)
