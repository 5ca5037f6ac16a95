"""One small fault in the code under test: each is seen, and the report names the output and the step where it begins.

A fault is one replacement in the source text of a module of `diffusers_ref`, and it is refused if its place is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import ANY, patch

import pytest
from planted import WithScheduler, planted

import diffusers_ref.models.layers
import diffusers_ref.models.unet_2d
import diffusers_ref.pipelines.unconditional
import diffusers_ref.schedulers.ddim
import diffusers_ref.schedulers.ddpm
import diffusers_ref.schedulers.pndm
from conformance.compare import Verdict
from conformance.implementations.reference import ReferenceImplementation
from conformance.library import open_library
from conformance.replay import CaseResult, Settings, replay


@dataclass(frozen=True)
class Fault:
    """A replacement in a module, a fixture that must see it, and where it shows first: (output, step); None: draws."""

    name: str
    case: str
    old: str
    new: str
    first: tuple[str, Any] | None


def parameters(faults: Sequence[Fault]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", faults, ids=[fault.name for fault in faults])


def run(case: str, implementation: ReferenceImplementation) -> CaseResult:
    return replay(open_library().get(case), implementation, Settings.of())


def run_scheduler(module: ModuleType, fault: Fault) -> CaseResult:
    return run(fault.case, WithScheduler(planted(module, fault.old, fault.new)))


def assert_seen(result: CaseResult, fault: Fault) -> None:
    assert result.verdict is Verdict.DIVERGENT, result.message
    first = result.first_divergence
    if fault.first is None:
        assert first is None
        assert result.draws_match is False
        assert result.message == "draws: the generator is not consumed as the original consumes it"
    else:
        assert first is not None
        assert (first.output, first.step) == fault.first
        assert result.draws_match is not False
        assert result.message.startswith(f"{first.output}{'' if first.step is None else f' at step {first.step}'}: ")


# --- schedulers ------------------------------------------------------------------------------------------------------

DRAW = "noise = self._noise(sample, generator, variance_noise, dtype)"
NEXT_LEVEL = "torch.cat([a[1:], self.final_alpha_cumprod.view(1)])"
LEVEL_AT_FIXED_STRIDE = (
    "torch.cat([self.alphas_cumprod[[max(t - len(self) // len(a), 0) for t in self._grid[:-1]]], "
    "self.final_alpha_cumprod.view(1)])"
)

DDIM_FAULTS = [
    Fault("a sign in the prediction of x0", "ddim/ddim-uniform-2-eta-0",
          "(x - c.sqrt_one_minus_abar * epsilon)", "(x + c.sqrt_one_minus_abar * epsilon)", ("step", 0)),
    Fault("sigma too large by 1e-5", "ddim/ddim-uniform-3-eta-1",
          "sigma = eta * ((1 - a / a_prev)", "sigma = (1 + 1e-5) * eta * ((1 - a / a_prev)", ("step", 0)),
    # Where ᾱ is near 0, float32 rounding of the step alone is larger than this; the float64 run sees it from step 0.
    Fault("the signal too large by 1e-5", "ddim/ddim-uniform-3-eta-0",
          "c.sqrt_abar_prev * limited", "(1 + 1e-5) * c.sqrt_abar_prev * limited", ("step", 2)),
    Fault("the alpha of the timestep before", "ddim/ddim-uniform-3-eta-0",
          "a = self.alphas_cumprod[self._grid]",
          "a = self.alphas_cumprod[[max(t - 1, 0) for t in self._grid]]", ("step", 0)),
    Fault("the previous step is t - T // n, uniform", "ddim/ddim-uniform-13-eta-0",
          NEXT_LEVEL, LEVEL_AT_FIXED_STRIDE, ("step", 0)),
    Fault("the previous step is t - T // n, quadratic", "ddim/ddim-quad-10-eta-0",
          NEXT_LEVEL, LEVEL_AT_FIXED_STRIDE, ("step", 0)),
    Fault("the last alpha is 1", "latent-diffusion/ddim-scaled-linear-7-eta-0",
          NEXT_LEVEL, "torch.cat([a[1:], a.new_ones(1)])", ("step", 7)),
    Fault("noise for the images in another order", "ddim/ddim-uniform-3-eta-1",
          DRAW, f"{DRAW}\n        noise = noise.flip(0) if variance_noise is None else noise", ("seeded", 0)),
    Fault("no draw without noise", "ddim/ddim-uniform-3-eta-0",
          DRAW, f"noise = torch.zeros_like(sample)\n        if eta > 0:\n            {DRAW}", None),
    Fault("a second draw", "ddim/ddim-uniform-3-eta-0",
          DRAW, f"{DRAW}\n        self._noise(sample, generator, variance_noise, dtype)", None),
    Fault("the clip left out", "improved-diffusion/ddim-fixed-large-7-eta-0",
          "limited = limit_x0(x0, self.config)", "limited = x0", ("step", 0)),
    Fault("the noise of the unclipped x0", "improved-diffusion/ddim-fixed-large-7-eta-0",
          "self._always_rederive = rederive_epsilon", "self._always_rederive = False", ("step", 0)),
    Fault("sigma tabulated in float32", "latent-diffusion/ddim-scaled-linear-7-eta-1",
          "wide = torch.float64 if len(a) > 1 else a.dtype", "wide = a.dtype", ("step.f64", 0)),
    Fault("the guided x0 clipped again", "dit/ddim-learned-range-guided-2-31-eta-0.5",
          "return x0, self._epsilon_from_x0(x0, x, c)",
          "return limit_x0(x0, self.config), self._epsilon_from_x0(x0, x, c)", ("step", 0)),
]  # fmt: skip

DDPM_DRAW = "z = self._noise(sample, generator, variance_noise, dtype)"
OPTIONS = 'convention_options = frozenset({"coefficients", "rescale_timesteps"})'

DDPM_FAULTS = [
    Fault("a sign in the mean", "ddpm/cifar-linear-fixedsmall-eps-3",
          "c.mean_x0 * x0 + c.mean_sample * x", "c.mean_x0 * x0 - c.mean_sample * x", ("step", 0)),
    Fault("noise too large by 1e-5", "ddpm/cifar-linear-fixedsmall-eps-3",
          "mean + std * z", "mean + (1 + 1e-5) * std * z", ("step", 0)),
    Fault("a factor of x0 too large by 1e-5", "ddpm/cifar-linear-fixedsmall-eps-3",
          "- c.x0_output * output", "- (1 + 1e-5) * c.x0_output * output", ("step", 0)),
    # The first steps of this case clip nothing.
    Fault("the clip left out", "ddpm/cifar-linear-fixedlarge-eps-7",
          "x0 = limit_x0(x0, self.config)", "pass", ("step", 4)),
    Fault("no draw in the last step", "ddpm/cifar-linear-fixedsmall-eps-3",
          DDPM_DRAW,
          f"z = torch.zeros_like(sample)\n        if int(timestep) != self._grid[-1]:\n            {DDPM_DRAW}", None),
    Fault("noise left out at the wrong end", "ddpm/cifar-linear-fixedsmall-eps-3",
          "mask[-1] = 0", "mask[0] = 0", ("step", 0)),
    Fault("the other fixed variance", "ddpm/cifar-linear-fixedlarge-eps-3",
          "max_log if self._large_variance else min_log", "min_log if self._large_variance else max_log", ("step", 0)),
    Fault("the learned range not shifted", "improved-diffusion/ddpm-learned-range-7",
          "(values + 1) / 2", "values / 2", ("step", 0)),
    Fault("the previous step is t - T // n", "ddim/ddpm-noisy-uniform-13",
          "a_prev = torch.cat([a[1:], a.new_ones(1)])",
          "a_prev = torch.cat([self.alphas_cumprod[[max(t - len(self) // len(a), 0) for t in self._grid[:-1]]]"
          ".to(dtype), a.new_ones(1)])", ("step", 0)),
    Fault("a factor from a float32 table", "ddpm/cifar-linear-fixedsmall-eps-7",
          "tables = (of_sample,",
          "of_sample = 1 / np.sqrt(np.float32(chain.alphas_cumprod))\n        tables = (of_sample,", ("step.f64", 3)),
    Fault("the gradient taken off", "guided-diffusion/ddpm-fixed-large-guided-2-ddim5",
          "mean = mean + variance *", "mean = mean - variance *", ("step", 0)),
    Fault("a table shown in float32", "ddpm/cifar-linear-fixedsmall-eps-3",
          OPTIONS, f"{OPTIONS}\n    alphas_cumprod = property(lambda self: self._table.alphas_cumprod.float())",
          ("alphas_cumprod", 0)),
]  # fmt: skip

LATER_LEVEL = "[int(time) + 1 for time in times]"

PNDM_FAULTS = [
    Fault("a sign among the multistep weights", "pndm/f-pndm-7", "(55, -59, 37, -9)", "(55, -59, 37, 9)", ("step", 12)),
    Fault("a Runge-Kutta mean too large by 1e-5", "pndm/f-pndm-4",
          "(1 / 6) * (self._sum", "(1 + 1e-5) / 6 * (self._sum", ("step", 3)),
    Fault("a multistep divisor too large by 1e-5", "pndm/s-pndm-7",
          "2: (2, (3, -1))", "2: (2 * (1 + 1e-5), (3, -1))", ("step", 2)),
    Fault("integer midpoints", "pndm/f-pndm-linear-51-3",
          "middle=(t + t_next) / 2", "middle=(t + t_next) // 2", ("timesteps", 1)),
    Fault("the alpha of the timestep itself", "pndm/s-pndm-4",
          LATER_LEVEL, "[max(int(time), 0) for time in times]", ("step", 0)),
    Fault("the midpoint -0.5 rounded down", "pndm/f-pndm-1",
          LATER_LEVEL, "[int(np.floor(time)) + 1 for time in times]", ("step", 0)),
    Fault("the unused draw left out", "latent-diffusion/plms-scaled-linear-4",
          "        if self._solver is Solver.PLMS:\n            self._noise(sample, generator, variance_noise, dtype)\n"
          "        elif variance", "        if self._solver is not Solver.PLMS and variance", None),
    Fault("the previous step is t - T // n", "pndm/f-pndm-13",
          "zip(grid, [*grid[1:], _END], strict=True)",
          "zip(grid, [max(t - len(self) // len(grid), _END) for t in grid], strict=True)", ("timesteps", 1)),
    Fault("the history in the opposite order", "pndm/s-pndm-7",
          "[epsilon, *self._history[: self._max_order - 1]]", "[*self._history[: self._max_order - 1], epsilon]",
          ("step", 2)),
    Fault("a time past the end of the grid", "latent-diffusion/plms-scaled-linear-1",
          "second_time=t if is_last else t_next", "second_time=t_next", ("timesteps", 1)),
    Fault("a table in the precision of the sample", "latent-diffusion/plms-scaled-linear-7",
          "before = table if self._table.coefficients is Coefficients.COMPVIS else table.to(work)",
          "before = table.to(work)", ("step.f64", 0)),
]  # fmt: skip


@parameters(DDIM_FAULTS)
def test_ddim(fault: Fault) -> None:
    assert_seen(run_scheduler(diffusers_ref.schedulers.ddim, fault), fault)


@parameters(DDPM_FAULTS)
def test_ddpm(fault: Fault) -> None:
    assert_seen(run_scheduler(diffusers_ref.schedulers.ddpm, fault), fault)


@parameters(PNDM_FAULTS)
def test_pndm(fault: Fault) -> None:
    assert_seen(run_scheduler(diffusers_ref.schedulers.pndm, fault), fault)


@pytest.mark.parametrize("case", sorted({fault.case for fault in (*DDIM_FAULTS, *DDPM_FAULTS, *PNDM_FAULTS)}))
def test_without_a_fault_the_cases_pass(case: str) -> None:
    result = run(case, ReferenceImplementation())

    assert result.verdict in (Verdict.BITWISE, Verdict.EQUIVALENT), result.message
    assert result.first_divergence is None
    assert result.draws_match is True


def test_another_order_of_a_sum_is_no_fault() -> None:
    """A port that rounds otherwise is not 1-to-1 in bits, but within the original's own rounding error."""
    old = "prev_sample = signal + noise + direction"
    faulty = planted(diffusers_ref.schedulers.ddim, old, "prev_sample = signal + direction + noise")

    result = run("ddim/ddim-uniform-13-eta-1", WithScheduler(faulty))

    assert result.verdict is Verdict.EQUIVALENT


def test_a_fault_needs_its_place() -> None:
    with pytest.raises(AssertionError, match="has 0 places 'nowhere'"):
        planted(diffusers_ref.schedulers.ddim, "nowhere", "")
    with pytest.raises(AssertionError, match=r"has \d+ places 'self'"):
        planted(diffusers_ref.schedulers.ddim, "self", "")


# --- networks: the fault is localised to the module, under its name in the original ----------------------------------

NETWORK = "ddim/network-tiny"

NETWORK_FAULTS = [
    Fault("a norm's epsilon", NETWORK, "self.norm2 = nn.GroupNorm(groups_out, out_channels, eps=eps)",
          "self.norm2 = nn.GroupNorm(groups_out, out_channels, eps=1e-4)", ("tap:down.0.block.0.norm2", None)),
    Fault("logits too large by 1e-5", NETWORK, "* d**-0.5", "* (1 + 1e-5) * d**-0.5",
          ("tap:down.1.attn.0.proj_out", None)),
    Fault("query and key swapped", NETWORK, "torch.bmm(q.transpose(1, 2), k)", "torch.bmm(k.transpose(1, 2), q)",
          ("tap:down.1.attn.0.proj_out", None)),
    Fault("the key's weights for the query", NETWORK, "q = self.to_q(h)", "q = self.to_k(h)",
          ("tap:down.1.attn.0.proj_out", None)),
    Fault("a shortcut from the wrong side", NETWORK, "x = self.conv_shortcut(x)", "x = self.conv_shortcut(x.flip(3))",
          ("tap:down.1.block.0.nin_shortcut", None)),
]  # fmt: skip


@parameters(NETWORK_FAULTS)
def test_network(fault: Fault) -> None:
    faulty = planted(diffusers_ref.models.layers, fault.old, fault.new)
    unet = diffusers_ref.models.unet_2d

    with (
        patch.object(unet, "ResnetBlock2D", faulty.ResnetBlock2D),
        patch.object(unet, "Attention", faulty.Attention),
    ):
        assert_seen(run(fault.case, ReferenceImplementation()), fault)


# --- pipelines -------------------------------------------------------------------------------------------------------

PIPELINE = "ddim/pipeline-ddim-7-eta-0.5"

PIPELINE_FAULTS = [
    Fault("eta not handed on", PIPELINE, "step(output, t, x, **step_options)",
          "step(output, t, x, generator=generator)", ("sample", 0)),
    Fault("a time off by one", PIPELINE, "scheduler.network_timestep(t), class",
          "scheduler.network_timestep(t) + 1, class", ("embedding", 0)),
    Fault("pixels truncated", PIPELINE, "postprocess(x, output_type, self.pixel_rounding, ",
          "postprocess(x, output_type, 'truncate', ", ("integers", ANY)),
    Fault("a generator ignored", PIPELINE, '{**step_options, "generator": generator}', '{**step_options}',
          ("seeded", 0)),
]  # fmt: skip


@parameters(PIPELINE_FAULTS)
def test_pipeline(fault: Fault) -> None:
    module = diffusers_ref.pipelines.unconditional
    faulty = planted(module, fault.old, fault.new).UnconditionalImagePipeline

    with patch.object(module.UnconditionalImagePipeline, "_sample", faulty._sample):
        result = run(fault.case, ReferenceImplementation())

    if fault.name == "a generator ignored":
        assert result.draws_match is False
        assert result.first_divergence is not None
        assert result.first_divergence.output == "seeded"
    else:
        assert_seen(result, fault)


def test_every_scheduler_has_six_faults_or_more_and_one_of_1e_5() -> None:
    for faults in (DDIM_FAULTS, DDPM_FAULTS, PNDM_FAULTS):
        assert len(faults) >= 6
        assert any("1e-5" in fault.new for fault in faults)
