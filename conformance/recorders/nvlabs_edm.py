"""Recorder for NVlabs/edm: `generate.py` (both samplers) around the preconditioners of `training/networks.py`.

The samplers' state is float64 around a float32 network. What is recorded at a call is the loop's own state, before the
preconditioner scales it, and the output of the network inside the preconditioner. A sampler that scales its state
before it asks for a denoised image hides the state from its denoiser: there it is taken from the loop's variables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from conformance.network import AnalyticNetwork
from conformance.recorders.checkout import Original, importing
from conformance.recorders.scheduler_case import Run, SchedulerCase

ORIGINAL = Original(
    system="edm",
    repository="NVlabs/edm",
    commit="008a4e5316c8e3bfe61a62f874bddba254295afb",
    licence="CC-BY-NC-SA-4.0",
    paper_title="Elucidating the Design Space of Diffusion-Based Generative Models",
    arxiv="2206.00364",
)
STUBS = ("click", "tqdm", "requests")
CHANGES = (
    "click, tqdm and requests stubbed",
    "the network inside the preconditioner is the analytic one",
)
LIFTED = (
    "preconditioner.forward: x, σ and the scalings stay float64 (torch.float32 reads torch.float64 there)",
    "c_noise: its float32 value is handed to the float64 network",
)
PRECONDITIONERS = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}
NETWORKS = {
    "edm": AnalyticNetwork(schedule="edm", prediction="edm"),
    "vp": AnalyticNetwork(),
    "ve": AnalyticNetwork(schedule="ve_edm", prediction="negative_epsilon"),
    "iddpm": AnalyticNetwork(variance="learned_range"),
    "score": AnalyticNetwork(schedule="sigma", prediction="score"),
}
"""The network inside each preconditioner; "score" is a network of score SDE on pixels in [0, 1], inside of "ve"."""


@contextmanager
def original(source: Path) -> Iterator[SimpleNamespace]:
    """The original's modules: `generate`, `networks`."""
    with importing(source, ("generate", "training.networks"), STUBS) as (generate, networks):
        yield SimpleNamespace(generate=generate, networks=networks)


class WideTorch:
    """torch, where float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Denoiser:
    """The original's preconditioner around `network`, as its samplers take it: net(x, sigma, class_labels).

    Attributes:
        initial, times: x_T as the sampler scaled it, and its t_steps, seen at the first call.
        denoised: D of every call, as the samplers use it.
    """

    def __init__(self, code: SimpleNamespace, kind: str, network: Any, channels: int, dtype: torch.dtype) -> None:
        self._code, self._network, self._dtype = code, network, dtype
        self._score = kind == "score"
        code.networks.AnalyticModel = lambda **_: None
        name = PRECONDITIONERS["ve" if self._score else kind]
        self._net = getattr(code.networks, name)(img_resolution=1, img_channels=channels, model_type="AnalyticModel")
        self._net.model = self._model
        self.sigma_min, self.sigma_max, self.round_sigma = (
            self._net.sigma_min, self._net.sigma_max, self._net.round_sigma
        )  # fmt: skip
        self._step = -1
        self._label: torch.Tensor | None = None
        self.initial: torch.Tensor | None = None
        self.times: torch.Tensor | None = None
        self.denoised: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: None) -> torch.Tensor:
        loop = sys._getframe(1).f_locals
        if self.initial is None:
            self.initial, self.times = loop["x_cur"].clone(), loop["t_steps"].clone()
        first, self._step = loop["i"] != self._step, loop["i"]
        if "s" in loop:  # The ablation sampler, which divides its state by s(t).
            state, t = (loop["x_hat"], loop["t_hat"]) if first else (loop["x_prime"], loop["t_prime"])
            self._network.at(state)
            x = state / loop["s"](t)
        else:
            self._network.at(x)
        self._sigma = sigma.to(self._dtype)
        denoised = self._lifted(x, sigma) if self._dtype == torch.float64 else self._net(x, sigma, class_labels)
        self.denoised.append(denoised.to(torch.float64))
        return denoised

    def _model(self, x: torch.Tensor, noise_labels: torch.Tensor, class_labels: None = None) -> torch.Tensor:
        """The network inside the preconditioner."""
        label = noise_labels if self._label is None else self._label
        if not self._score:
            return self._network(x, label)
        half = 0.5 * self._sigma
        return half * self._network((x + 1) / 2, half.to(torch.float32).reshape(1))

    def _lifted(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        labels: list[torch.Tensor] = []

        def keep(x: torch.Tensor, noise_labels: torch.Tensor, class_labels: None = None) -> torch.Tensor:
            labels.append(noise_labels)
            return torch.zeros_like(x)

        net = self._net
        with patch.object(net, "model", keep):
            net(x, sigma, None)
        self._label = labels[0]
        levels: AbstractContextManager[Any] = nullcontext()
        if hasattr(net, "u"):
            index = net.round_sigma(sigma, return_index=True)
            levels = patch.object(net, "round_sigma", lambda *_, **__: index)
        with patch.object(self._code.networks, "torch", WideTorch()), levels:
            return net(x, sigma, None)


def sampler(
    code: SimpleNamespace, function: str, kind: str, options: Mapping[str, Any], table: str | None = None
) -> Callable[..., Run]:
    """`run` of a case: the original's sampler `function` around the preconditioner `kind`."""

    def run(network: Any, shape: Sequence[int], dtype: torch.dtype) -> Run:
        net = Denoiser(code, kind, network, shape[1], dtype)
        draw = lambda x: torch.randn_like(x)
        final = getattr(code.generate, function)(net, torch.randn(shape), randn_like=draw, **options)
        tables = {} if table is None else {table: net.times}
        return Run(final, net.denoised, tables, net.initial)  # type: ignore[arg-type]

    return run


NAMES = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise", "C_1": "c_1", "C_2": "c_2",
         "M": "num_levels"}  # fmt: skip
"""The original's options that have other names here."""


def cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Algorithm 2 and the ablations."""
    yield from heun_cases(code)
    yield from ablation_cases(code)
    yield from euler_cases(code)
    yield from score_cases(code)


CHURN = {"S_churn": 6.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}


def heun_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Pairwise over steps, churn, ρ, range and preconditioner.

    One step is not a number in the original, which divides by N − 1, and cannot be recorded.
    """
    for steps, kind, options in (
        (2, "edm", {}),
        (3, "edm", {"rho": 3.0}),
        (5, "edm", {**CHURN}),
        (8, "edm", {"sigma_min": 0.01, "sigma_max": 20.0}),
        (18, "edm", {}),
        (18, "edm", {"S_churn": 30.0, "S_min": 0.01, "S_max": 1.0, "S_noise": 1.007}),
        (4, "edm", {"S_churn": 40.0, "rho": 5.0, "sigma_max": 10.0}),
        (7, "edm", {"S_churn": 1.5, "S_min": 1.0, "S_noise": 0.98}),
        (5, "vp", {"S_churn": 4.0, "S_max": 10.0}),
        (6, "vp", {"rho": 5.0, "sigma_max": 152.0}),
        (5, "ve", {"S_churn": 5.0, "S_min": 0.2, "sigma_max": 200.0}),
        (3, "ve", {"rho": 9.0}),
        (5, "iddpm", {"S_churn": 8.0, "S_min": 0.05, "S_noise": 1.007}),
        (6, "iddpm", {"sigma_min": 0.01, "rho": 4.0}),
    ):
        churn = f"-churn-{options['S_churn']:g}" if "S_churn" in options else ""
        other = "".join(f"-{name.replace('_', '-')}-{options[name]:g}" for name in
                        ("rho", "sigma_min", "sigma_max") if name in options)  # fmt: skip
        config = {NAMES.get(name, name): value for name, value in options.items()}
        yield SchedulerCase(
            name=f"heun-{kind}{other}{churn}-{steps}",
            title=f"algorithm 2 around the preconditioner {kind}, {steps} steps",
            location="algorithm 2; table 1",
            cls="EDMHeunScheduler",
            config={"preconditioning": kind, **config, "state_dtype": "float64"},
            set_timesteps={"num_inference_steps": steps},
            run=sampler(code, "edm_sampler", kind, {"num_steps": steps, **options}, "sigmas"),
            network=NETWORKS[kind],
            functions=("generate.py:edm_sampler", f"training/networks.py:{PRECONDITIONERS[kind]}"),
            shape=shape_of(2 * steps - 1),
            seed=steps,
            changes=CHANGES,
            lifted=LIFTED,
        )


def ablation_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """Pairwise over discretisation, schedule, scaling, preconditioner, solver, α and churn."""
    for steps, kind, design, options in (
        (5, "vp", ("vp", "vp", "vp"), {}),
        (6, "vp", ("edm", "linear", "none"), {"solver": "euler"}),
        (4, "vp", ("ve", "ve", "vp"), {"S_churn": 3.0, "alpha": 0.5}),
        (5, "ve", ("ve", "ve", "none"), {}),
        (3, "ve", ("vp", "linear", "none"), {"S_churn": 2.0, "S_min": 0.05, "S_max": 20.0, "epsilon_s": 1e-2}),
        (6, "ve", ("edm", "vp", "vp"), {"solver": "euler", "S_churn": 4.0, "S_noise": 1.01}),
        (6, "iddpm", ("iddpm", "linear", "none"), {}),
        (4, "iddpm", ("iddpm", "vp", "vp"), {"S_churn": 4.0, "M": 500}),
        (5, "edm", ("edm", "linear", "none"), {"alpha": 0.75, **CHURN}),
        (4, "edm", ("iddpm", "ve", "none"), {"alpha": 0.5, "C_2": 0.02, "sigma_min": 0.05}),
        (5, "edm", ("vp", "ve", "vp"), {"S_churn": 4.0, "S_min": 0.1, "S_max": 10.0, "sigma_min": 0.05}),
        (12, "edm", ("ve", "vp", "none"), {"solver": "euler", "sigma_min": 0.01, "sigma_max": 30.0}),
        (2, "edm", ("edm", "vp", "vp"), {"rho": 4.0}),
    ):
        discretization, schedule, scaling = design
        chosen = {"discretization": discretization, "schedule": schedule, "scaling": scaling, **options}
        solver = str(options.get("solver", "heun"))
        extra = "".join(f"-{name.lower().replace('_', '-')}" for name in options if name != "solver")
        config = {NAMES.get(name, name): value for name, value in chosen.items()}
        yield SchedulerCase(
            name=f"ablation-{kind}-{discretization}-{schedule}-{scaling}-{solver}{extra}-{steps}",
            title=f"ablation: {discretization} steps, schedule {schedule}, scaling {scaling}, {solver}, {steps} steps",
            location="algorithm 1; table 1; appendix D.2",
            cls="EDMAblationScheduler",
            config={"preconditioning": kind, **config, "state_dtype": "float64"},
            set_timesteps={"num_inference_steps": steps},
            run=sampler(code, "ablation_sampler", kind, {"num_steps": steps, **chosen}, "t_steps"),
            network=NETWORKS[kind],
            functions=("generate.py:ablation_sampler", f"training/networks.py:{PRECONDITIONERS[kind]}"),
            shape=shape_of(steps if solver == "euler" else 2 * steps - 1),
            seed=steps,
            changes=CHANGES,
            lifted=LIFTED,
        )


def euler_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """The ablation sampler's Euler method on the paper's own design."""
    for steps, options in ((2, {}), (10, {}), (6, {**CHURN, "rho": 5.0}), (100, {"S_churn": 20.0, "S_max": 40.0})):
        config = {NAMES.get(name, name): value for name, value in options.items()}
        yield SchedulerCase(
            name=f"euler{'-churn' if 'S_churn' in options else ''}-{steps}",
            title=f"Euler's method on the paper's own design, {steps} steps",
            location="algorithm 2 without its lines 9 to 13",
            cls="EDMEulerScheduler",
            config={**config, "initial_scale": "first_sigma", "state_dtype": "float64"},
            set_timesteps={"num_inference_steps": steps},
            run=sampler(code, "ablation_sampler", "edm", {"num_steps": steps, "solver": "euler", **options}, "sigmas"),
            network=NETWORKS["edm"],
            functions=("generate.py:ablation_sampler", "training/networks.py:EDMPrecond"),
            shape=shape_of(steps),
            seed=steps,
            changes=CHANGES,
            lifted=LIFTED,
        )


def score_cases(code: SimpleNamespace) -> Iterator[SchedulerCase]:
    """The levels of VE around a network of score SDE, adapted to the original's preconditioner by equation 213."""
    published = {"S_churn": 80.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.007}
    for steps, options in (
        (3, {"S_churn": 0.0}),
        (6, published),
        (10, {**published, "S_churn": 3.0, "sigma_min": 0.05, "sigma_max": 60.0}),
    ):
        names = {"S_churn": "s_churn", "S_min": "s_min", "S_max": "s_max", "S_noise": "s_noise"}
        config = {names.get(name, name): value for name, value in options.items()}
        yield SchedulerCase(
            name=f"karras-ve-churn-{options['S_churn']:g}-{steps}",
            title=f"variance-exploding levels around a score network, {steps} steps",
            location="algorithm 2; table 1, column VE; equation 213",
            cls="KarrasVeScheduler",
            config={**config, "state_dtype": "float64"},
            set_timesteps={"num_inference_steps": steps},
            run=sampler(
                code, "ablation_sampler", "score", {"num_steps": steps, "discretization": "ve", **options}, "sigmas"
            ),
            network=NETWORKS["score"],
            functions=("generate.py:ablation_sampler", "training/networks.py:VEPrecond"),
            shape=shape_of(2 * steps - 1),
            seed=steps,
            changes=(*CHANGES, "σ/2 · score(x/2 + 1/2, σ/2) stands for the network of the preconditioner VE"),
            lifted=LIFTED,
        )


def shape_of(evaluations: int) -> tuple[int, ...]:
    """(B, C, H, W) of a case: smaller for longer runs, as float64 states take twice the room."""
    return (2, 3, 4, 2) if evaluations <= 9 else (2, 1, 4, 2) if evaluations <= 20 else (1, 1, 3, 2)
