"""Recorder for yang-song/score_sde_pytorch: predictor–corrector samplers of the VE, VP and sub-VP SDEs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing, widened
from conformance.recorders.network_cases import ModelCase, PipelineCase
from conformance.recorders.scheduler_case import Run, SchedulerCase, case_shape
from conformance.recorders.yang_song_score_sde_networks import network_cases

ORIGINAL = Original(
    system="score-sde",
    repository="yang-song/score_sde_pytorch",
    commit="cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44",
    licence="Apache-2.0",
    paper_title="Score-Based Generative Modeling through Stochastic Differential Equations",
    arxiv="2011.13456",
)
STUBS = ("torch.utils.cpp_extension",)
CHANGES = (
    "torch.utils.cpp_extension stubbed",
    "the network answers before noise is drawn and before the drift is computed; this changes no number",
)
LIFTED = (
    "sde_lib: the float32 tables of the discrete chains are handed out as float64",
    "sde_lib: sde, marginal_prob and discretize compute in float64 from the float32 times; what the network is given "
    "as time stays float32",
    "sampling.LangevinCorrector: step sizes in float64",
)
SCHEDULERS = {"VESDE": "ScoreSdeVeScheduler", "VPSDE": "ScoreSdeVpScheduler", "subVPSDE": "ScoreSdeSubVpScheduler"}
CONTROLLED = 1e-8
"""Allowed in float64 where steps follow from error estimates, which are small differences."""
DISCRETE_TABLES = ("discrete_betas", "alphas", "alphas_cumprod", "sqrt_1m_alphas_cumprod", "discrete_sigmas")


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `sampling`, `sde_lib`; of `models`, `mutils` (utils), the networks and their layers."""
    names = ("utils", "ncsnpp", "ddpm", "layers", "layerspp", "up_or_down_sampling")
    with importing(source, ["sampling", "sde_lib", *(f"models.{name}" for name in names)], STUBS) as found:
        sampling, sde_lib, mutils, *networks = found
        yield SimpleNamespace(
            sampling=sampling, sde_lib=sde_lib, mutils=mutils, **dict(zip(names[1:-1], networks, strict=False)),
            up_or_down=networks[-1],
        )  # fmt: skip


class _Model:
    """What the original asks a model for: `eval`, and being called with labels. Asked again for the same tensor, it
    gives the same answer without asking the network."""

    def __init__(self, network: Callable[..., torch.Tensor]) -> None:
        self._network = network
        self._x: torch.Tensor | None = None
        self._answer = torch.empty(0)

    def eval(self) -> None:
        pass

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if x is not self._x:
            self._x, self._answer = x, self._network(x, labels)
        return self._answer


# The network has to answer before anything else is done with its input: then every draw follows the evaluation that it
# is for, and the state of a forced run is in place from the beginning.


@contextmanager
def predictor_asks_first(code: SimpleNamespace) -> Iterator[None]:
    """In a step of a predictor."""
    update = code.sampling.shared_predictor_update_fn

    def asking_first(
        x: torch.Tensor, t: torch.Tensor, sde: Any, model: Any, predictor: Any, continuous: bool, **options: Any
    ) -> Any:
        if predictor is not code.sampling.NonePredictor:
            code.mutils.get_score_fn(sde, model, continuous=continuous)(x, t)
        return update(x, t, sde=sde, model=model, predictor=predictor, continuous=continuous, **options)

    with patch.object(code.sampling, "shared_predictor_update_fn", asking_first):
        yield


def reverse_asks_first(sde: Any) -> None:
    """In the functions of the reverse-time SDE."""
    reverse = sde.reverse

    def asking_first(score_fn: Any, probability_flow: bool = False) -> Any:
        backwards = reverse(score_fn, probability_flow)
        for name in ("sde", "discretize"):
            function = getattr(backwards, name)
            setattr(backwards, name, lambda x, t, function=function: (score_fn(x, t), function(x, t))[1])
        return backwards

    sde.reverse = asking_first


@contextmanager
def lifted(sde: Any, dtype: torch.dtype) -> Iterator[None]:
    """For the oracle: float64 arithmetic on the float32 tables and times."""
    if dtype != torch.float64:
        yield
        return
    for name in DISCRETE_TABLES:
        if hasattr(sde, name):
            setattr(sde, name, getattr(sde, name).double())
    drift_and_diffusion, marginal, discretize = sde.sde, sde.marginal_prob, sde.discretize
    sde.sde = lambda x, t: drift_and_diffusion(x, t.double())
    if type(sde).__name__ == "VESDE":  # Its standard deviation is what the network is given, a float32 number.
        sde.marginal_prob = lambda x, t: (x, marginal(x, t)[1].double())
    else:
        sde.marginal_prob = lambda x, t: marginal(x, t.double())

    def discretized(x: torch.Tensor, t: torch.Tensor) -> Any:
        torch.set_default_dtype(torch.float64)
        try:
            return discretize(x, t)
        finally:
            torch.set_default_dtype(torch.float32)

    sde.discretize = discretized
    with widened(torch, "ones_like"):
        yield


def sampler(
    code: SimpleNamespace, sde_name: str, sde_options: dict[str, Any], sampling: dict[str, Any]
) -> Callable[..., Run]:
    """`run` of a case: the original's pc_sampler on an SDE of `sde_options`; `sampling` as in its config files."""
    options = {"corrector": "none", "snr": 0.16, "n_steps": 1, "probability_flow": False, "continuous": True,
               "denoise": True, **sampling}  # fmt: skip
    predictor = code.sampling.get_predictor(options.pop("predictor"))
    corrector = code.sampling.get_corrector(options.pop("corrector"))

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        sde = getattr(code.sde_lib, sde_name)(**sde_options)
        tables = _tables(sde, options["eps"])
        initial: list[torch.Tensor] = []
        prior = sde.prior_sampling

        def prior_sampling(shape: Sequence[int]) -> torch.Tensor:
            x = prior(shape)
            initial.append(x.clone())
            return x.to(dtype)

        sde.prior_sampling = prior_sampling
        with predictor_asks_first(code), lifted(sde, dtype):
            sample = code.sampling.get_pc_sampler(
                sde, shape, predictor, corrector, inverse_scaler=lambda x: x, device="cpu", **options
            )
            final, _ = sample(_Model(network))
        return Run(final, None, tables, initial[0])

    return run


def ode_sampler(
    code: SimpleNamespace, sde_name: str, sde_options: dict[str, Any], sampling: dict[str, Any]
) -> Callable[..., Run]:
    """`run` of a case: the original's ode_sampler (scipy's RK45); `sampling` as `get_ode_sampler` takes it."""

    def run(network: Callable[..., torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> Run:
        sde = getattr(code.sde_lib, sde_name)(**sde_options)
        initial = sde.prior_sampling(shape)
        reverse_asks_first(sde)
        with lifted(sde, dtype), keeping(dtype), patch.object(torch, "randn_like", _float32_noise):
            sample = code.sampling.get_ode_sampler(sde, shape, inverse_scaler=lambda x: x, device="cpu", **sampling)
            final, _ = sample(_Model(network), z=initial.to(dtype, copy=True))
        return Run(final, None, {}, initial)

    return run


def _float32_noise(x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape).to(x.dtype)


@contextmanager
def keeping(dtype: torch.dtype) -> Iterator[None]:
    """The solver's state reaches the network in this dtype: for the oracle in float64, not in float32."""
    convert = torch.Tensor.type
    state_in_dtype = lambda x, wanted=None: x.to(dtype, copy=True) if wanted == torch.float32 else convert(x, wanted)
    with patch.object(torch.Tensor, "type", state_in_dtype):
        yield


def _tables(sde: Any, eps: float) -> dict[str, torch.Tensor]:
    """The discrete chain and, of the VE SDE, σ at every level."""
    tables = {name: getattr(sde, name) for name in ("discrete_betas", "discrete_sigmas") if hasattr(sde, name)}
    if type(sde).__name__ == "VESDE":
        levels = torch.linspace(sde.T, eps, sde.N)
        tables["sigmas"] = torch.cat([sde.marginal_prob(None, t.reshape(1))[1] for t in levels])
    return tables


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase | ModelCase | PipelineCase]:
    """The samplers; then the networks and the pipeline."""
    yield from sampler_cases(code)
    yield from ode_cases(code)
    yield from network_cases(code, sampler, LIFTED)


VE = {"sigma_min": 0.01, "sigma_max": 50.0}
VP = {"beta_min": 0.1, "beta_max": 20.0}
MILD = {"beta_min": 0.1, "beta_max": 5.0}


def sampler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Every predictor with every corrector that the original can run, pairwise over the other options.

    Small numbers of steps make the roots of the discrete VP chain negative; those cases have a small β_max.
    """
    reverse, ancestral, euler = "reverse_diffusion", "ancestral_sampling", "euler_maruyama"
    case = partial(_case, code)
    yield case("VESDE", 6, {**VE, "sigma_max": 1348.0}, reverse, "langevin", n_steps=2, snr=0.1, denoise=False)
    yield case("VESDE", 1, {**VE, "sigma_min": 5.0}, reverse, shape=(3, 1, 2, 2))
    yield case("VESDE", 9, VE, reverse, probability_flow=True)
    yield case("VESDE", 9, VE, ancestral, "langevin", shape=(3, 2, 2, 2))
    yield case("VESDE", 6, {**VE, "sigma_max": 2.0}, ancestral, continuous=False, denoise=False)
    yield case("VESDE", 9, VE, euler)
    yield case("VESDE", 4, {"sigma_min": 0.05, "sigma_max": 2.0}, euler, "ald", continuous=False, snr=0.3)
    yield case("VESDE", 5, VE, "none", "langevin", n_steps=2)
    yield case("VESDE", 17, VE, reverse, "langevin")
    yield case("VPSDE", 10, VP, euler)
    yield case("VPSDE", 20, VP, reverse, "langevin")
    yield case("VPSDE", 7, MILD, reverse, probability_flow=True, continuous=False)
    yield case("VPSDE", 6, MILD, ancestral, "ald", n_steps=2, snr=0.3, denoise=False)
    yield case("VPSDE", 14, MILD, ancestral, continuous=False)
    yield case("VPSDE", 6, {"beta_min": 2.0, "beta_max": 2.0}, euler, "langevin", continuous=False)
    yield case("subVPSDE", 10, VP, euler, denoise=False)
    yield case("subVPSDE", 2, VP, reverse, eps=0.02)
    yield case("subVPSDE", 10, MILD, reverse, probability_flow=True)


def ode_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """The probability flow ODE: in float32 with a tolerance above its noise, and in float64 with small ones."""
    case, tiny = partial(_ode_case, code), (1, 2, 1, 2)
    yield case("VPSDE", "vp", {**VP, "N": 1000}, rtol=0.1)
    yield case("VPSDE", "vp", {**MILD, "N": 20}, rtol=0.2, denoise=True, shape=tiny)
    yield case("VPSDE", "vp", {}, rtol=1e-5, wide=True, shape=tiny)
    yield case("VESDE", "ve", {"N": 50}, rtol=1e-3, denoise=True, wide=True)
    yield case(
        "subVPSDE", "sub_vp", {"beta_max": 12.0, "N": 40}, rtol=0.1, atol=0.2, eps=0.01, denoise=True, shape=tiny
    )


def _ode_case(
    code: SimpleNamespace,
    sde: str,
    name: str,
    sde_options: dict[str, Any],
    rtol: float,
    atol: float | None = None,
    eps: float | None = None,
    denoise: bool = False,
    wide: bool = False,
    shape: tuple[int, ...] = (2, 3, 2, 2),
) -> SchedulerCase:
    """atol: rtol if None. eps: the original's for the SDE if None. wide: every run is the oracle's.

    The config names only what is not the original's default.
    """
    own_eps = 1e-5 if sde == "VESDE" else 1e-3
    sampling = {"eps": eps or own_eps, "rtol": rtol, "atol": atol or rtol, "denoise": denoise}
    config = {"sde": name, "rtol": rtol, "atol": atol or rtol, "sampling_eps": eps, "noise_removal": denoise}
    config |= {"num_train_timesteps" if key == "N" else key: value for key, value in sde_options.items()}
    run = ode_sampler(code, sde, sde_options, sampling)
    changes = (*CHANGES, "run in float64, as float32 noise shows in the error estimates") if wide else CHANGES
    words = [name.replace("_", "-"), "ode", f"{rtol:g}", f"{atol:g}" if atol else "", "denoised" if denoise else ""]
    return SchedulerCase(
        name="-".join(word for word in words if word),
        title=f"{sde}, probability flow ODE, tolerances {rtol:g} and {atol or rtol:g}{', in float64' if wide else ''}",
        location="section 4.3, equation 13; section D.4",
        cls="ScoreSdeOdeScheduler",
        config={key: value for key, value in config.items() if value not in (None, False, 1e-5, "vp")},
        set_timesteps={},
        run=(lambda network, shape, dtype: run(network, shape, torch.float64)) if wide else run,
        network=_network(sde, 1000, {"continuous": True}),
        functions=("sampling.py:get_ode_sampler", f"sde_lib.py:{sde}", "models/utils.py:get_score_fn"),
        shape=shape,
        changes=changes,
        lifted=(*LIFTED[:2], "sampling.ode_sampler: the solver's state reaches the network in float64"),
        **({"float64_tolerance": CONTROLLED} if wide else {}),  # type: ignore[arg-type]
    )


LOCATIONS = {"VESDE": "Algorithms 1, 2 and 4; equation 30", "VPSDE": "Algorithms 1, 3 and 5; equation 32",
             "subVPSDE": "Algorithm 1; equation 12"}  # fmt: skip
PREDICTORS = {"euler_maruyama": "EulerMaruyamaPredictor", "reverse_diffusion": "ReverseDiffusionPredictor",
              "ancestral_sampling": "AncestralSamplingPredictor", "none": "NonePredictor"}  # fmt: skip
CORRECTORS = {"langevin": "LangevinCorrector", "ald": "AnnealedLangevinDynamics", "none": "NoneCorrector"}


def _case(
    code: SimpleNamespace,
    sde: str,
    steps: int,
    sde_options: dict[str, Any],
    predictor: str,
    corrector: str = "none",
    shape: tuple[int, ...] | None = None,
    **sampling: Any,
) -> SchedulerCase:
    sampling = {"eps": 1e-5 if sde == "VESDE" else 1e-3, "predictor": predictor, "corrector": corrector, **sampling}
    substeps = sampling.get("n_steps", 1) if corrector != "none" else 0
    config = {
        "num_train_timesteps": steps,
        "sampling_eps": sampling["eps"],
        "predictor": predictor,
        "corrector": corrector,
        **sde_options,
    }
    if sde != "subVPSDE":
        config["correct_steps"] = sampling.get("n_steps", 1)
        config |= {"snr": sampling.get("snr", 0.16)} if sde == "VESDE" or "snr" in sampling else {}
    # What is left out is as in the original's settings of continuously trained networks.
    unusual = {"probability_flow": ("probability_flow", True), "noise_removal": ("denoise", False),
               "continuous": ("continuous", False)}  # fmt: skip
    config |= {option: value for option, (key, value) in unusual.items() if sampling.get(key) is value}
    evaluations = steps * (substeps + (predictor != "none"))
    words = [sde.removesuffix("SDE"), predictor, corrector if substeps else "", str(substeps) if substeps > 1 else "",
             "flow" if "probability_flow" in config else "", "discrete" if "continuous" in config else "",
             "noisy" if "noise_removal" in config else "", str(steps)]  # fmt: skip
    return SchedulerCase(
        name="-".join(word for word in words if word).lower().replace("_", "-"),
        title=f"{sde}, predictor {predictor}, corrector {corrector}, N = {steps}",
        location=LOCATIONS[sde],
        cls=SCHEDULERS[sde],
        config=config,
        set_timesteps={"num_inference_steps": steps},
        run=sampler(code, sde, {**sde_options, "N": steps}, sampling),
        network=_network(sde, steps, config),
        functions=(
            "sampling.py:get_pc_sampler",
            f"sampling.py:{PREDICTORS[predictor]}",
            f"sampling.py:{CORRECTORS[corrector]}",
            f"sde_lib.py:{sde}",
            "models/utils.py:get_score_fn",
        ),
        shape=shape or ((2, 3, 2, 2) if evaluations <= 20 else case_shape(evaluations)),
        seed=steps,
        changes=CHANGES,
        lifted=LIFTED,
    )


def _network(sde: str, steps: int, config: dict[str, Any]) -> AnalyticNetwork:
    """A network for the labels of the case: σ, the level's number (0 for σ = 2), or the time of a VP chain."""
    if sde == "VESDE" and config.get("continuous", True):
        return AnalyticNetwork(prediction="score", schedule="sigma")
    if sde == "VESDE":
        log_ratio = math.log(config["sigma_max"] / config["sigma_min"])
        return AnalyticNetwork(prediction="score", schedule="ve_edm", time_scale=-(steps - 1) / log_ratio)
    return AnalyticNetwork(1000 if config.get("continuous", True) else steps)
