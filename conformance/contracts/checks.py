"""Holding all contracts of a kind against one class or object; plain functions, usable without pytest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conformance.contracts.contract import Contract, Profile
from conformance.contracts.result import CheckResult


def check_scheduler(scheduler: Any, *, profile: Profile | None = None) -> list[CheckResult]:
    """Hold every scheduler contract against a class, or an object (whose configuration is the starting point).

    Returns one result per contract, in a fixed order. Raises TypeError for what is no scheduler.
    """
    subject, contracts = scheduler_contracts(scheduler)
    return [contract.hold(subject, profile) for contract in contracts]


def check_model(
    model: Any, *, inputs: Mapping[str, Any] | None = None, profile: Profile | None = None
) -> list[CheckResult]:
    """Hold every model contract against a network (an instance: a class alone does not say its size).

    inputs: keyword arguments of one good call, batch first; None: found from the signature and the configuration.
    Raises TypeError for what is no `torch.nn.Module`, and for inputs that its `forward` does not take.
    """
    subject, contracts = model_contracts(model, inputs)
    return [contract.hold(subject, profile) for contract in contracts]


def check_pipeline(
    pipeline: Any, *, call: Mapping[str, Any] | None = None, profile: Profile | None = None
) -> list[CheckResult]:
    """Hold every pipeline contract against a pipeline (an instance with small components).

    call: arguments of one good call for one image that are not found from the signature, such as an image or
        embeddings of a prompt.
    Raises TypeError for what is no pipeline, and for arguments that a call does not take.
    """
    subject, contracts = pipeline_contracts(pipeline, call)
    return [contract.hold(subject, profile) for contract in contracts]


def scheduler_contracts(scheduler: Any) -> tuple[Any, Sequence[Contract]]:
    """The scheduler as a subject of checks, and the contracts."""
    from conformance.contracts.scheduler import CONTRACTS
    from conformance.contracts.scheduler.driver import SchedulerUnderTest

    return SchedulerUnderTest(scheduler), CONTRACTS


def model_contracts(model: Any, inputs: Mapping[str, Any] | None = None) -> tuple[Any, Sequence[Contract]]:
    """The network as a subject of checks, and the contracts."""
    from conformance.contracts.model import CONTRACTS
    from conformance.contracts.model.driver import ModelUnderTest

    return ModelUnderTest(model, inputs), CONTRACTS


def pipeline_contracts(pipeline: Any, call: Mapping[str, Any] | None = None) -> tuple[Any, Sequence[Contract]]:
    """The pipeline as a subject of checks, and the contracts."""
    from conformance.contracts.pipeline import CONTRACTS
    from conformance.contracts.pipeline.driver import PipelineUnderTest

    return PipelineUnderTest(pipeline, call), CONTRACTS


def contracts_for(subject: Any) -> tuple[Any, Sequence[Contract]]:
    """The contracts of the subject's kind: a scheduler (class or object), a network, or a pipeline.

    Raises TypeError for anything else.
    """
    import torch

    cls = subject if isinstance(subject, type) else type(subject)
    if callable(getattr(cls, "set_timesteps", None)):
        return scheduler_contracts(subject)
    if not isinstance(subject, type):
        if isinstance(subject, torch.nn.Module):
            return model_contracts(subject)
        if callable(subject) and hasattr(subject, "components"):
            return pipeline_contracts(subject)
    raise TypeError(
        f"{cls.__name__} is neither a scheduler (class or object), nor a network or pipeline object: nothing to check"
    )


def parametrize_with_checks(subjects: Iterable[Any], profile: Profile | None = None) -> Any:
    """A pytest decorator: one test per subject and contract, called with `check`, a function without arguments that
    raises AssertionError if the contract does not hold and skips where it does not apply.

        @parametrize_with_checks([MyScheduler, my_pipeline])
        def test_contracts(check):
            check()
    """
    import pytest

    from conformance.contracts.result import Status

    def one(subject: Any, contract: Contract) -> Any:
        def check() -> CheckResult:
            result = contract.hold(subject, profile)
            if result.status is Status.NOT_APPLICABLE:
                pytest.skip(result.reason)
            if result.status is Status.FAILED:
                example = f" [{result.example}]" if result.example else ""
                pytest.fail(f"{result.subject}: {contract.statement} {result.reason}{example}", pytrace=False)
            return result

        return pytest.param(check, id=f"{subject.name}-{contract.name}")

    pairs = [(subject, contract) for subject, contracts in map(contracts_for, subjects) for contract in contracts]
    return pytest.mark.parametrize("check", [one(subject, contract) for subject, contract in pairs])
