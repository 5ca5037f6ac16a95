"""Contracts of a pipeline's parts: saved, loaded, moved, shared, left out."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
from pathlib import Path
from typing import Any

import torch

from conformance.contracts.contract import Contract, Given
from conformance.contracts.measure import require_finite, require_same
from conformance.contracts.pipeline.driver import MORE_STEPS, PipelineUnderTest, networks, quiet
from conformance.contracts.result import NotApplicable, Violation

INDEX = "model_index.json"
CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Own:\n    pass\n"


def save_and_load_give_equal_images(subject: PipelineUnderTest, given: Given) -> None:
    """A saved and loaded pipeline is of the same class, in evaluation mode, and gives the same images bit for bit."""
    wanted = subject.run(subject.fresh())
    with subject.saved() as folder:
        loaded = quiet(subject.cls.from_pretrained(folder))
    if type(loaded) is not subject.cls:
        raise Violation(f"a saved {subject.name} is loaded as {type(loaded).__name__}")
    training = [type(network).__name__ for network in networks(loaded) if network.training]
    if training:
        raise Violation(f"{', '.join(training)} is in training mode after loading")
    require_same(subject.run(loaded), wanted, "the images of the loaded pipeline")


def model_index_names_every_component(subject: PipelineUnderTest, given: Given) -> None:
    """model_index.json names the pipeline's class and, for every component, [library, class]; each has its folder."""
    pipeline = subject.fresh()
    with subject.saved() as folder:
        if not (folder / INDEX).is_file():
            raise Violation(f"save_pretrained wrote no {INDEX}")
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        written = index.get("_class_name")
        if (written[-1] if isinstance(written, list) else written) != subject.name:
            raise Violation(f"{INDEX} names the class {written!r} instead of {subject.name!r}")
        for name, component in pipeline.components.items():
            entry = index.get(name, "nothing")
            if component is None:
                if entry not in ([None, None], None):
                    raise Violation(f"{INDEX} says {entry!r} of {name}, which is left out")
                continue
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(each, str) for each in entry)):
                raise Violation(f"{INDEX} says {entry!r} of {name} instead of [library, class]")
            if not type(component).__name__.startswith(entry[1]):  # An image processor's backend is not named.
                raise Violation(f"{INDEX} says that {name} is a {entry[1]}, it is a {type(component).__name__}")
            if not any(folder.joinpath(name).glob("*")):
                raise Violation(f"save_pretrained wrote no folder {name}")


def to_moves_every_network(subject: PipelineUnderTest, given: Given) -> None:
    """`to` brings every network to the dtype and device, returns the pipeline, and float64 and back leaves the images
    as they were."""
    pipeline = subject.fresh()
    if not hasattr(pipeline, "to"):
        raise NotApplicable(f"{subject.name} has no to")
    wanted = subject.run(subject.fresh())
    moved = pipeline.to(torch.float64)
    if moved is not pipeline:
        raise Violation("to(dtype) does not return the pipeline")
    for network in networks(pipeline):
        left = [name for name, p in network.named_parameters() if p.is_floating_point() and p.dtype != torch.float64]
        if left:
            raise Violation(f"after to(torch.float64) {type(network).__name__}.{left[0]} is not float64")
    require_finite(subject.run(pipeline), "the images in float64")
    pipeline.to("cpu", torch.float32)
    require_same(subject.run(pipeline), wanted, "the images after to(float64) and to(float32)")
    pipeline.to("meta")
    for network in networks(pipeline):
        left = [name for name, p in network.named_parameters() if p.device.type != "meta"]
        if left:
            raise Violation(f'after to("meta") {type(network).__name__}.{left[0]} is still on another device')


def components_rebuild_the_pipeline(subject: PipelineUnderTest, given: Given) -> None:
    """`components` names every network and scheduler, and a pipeline made of them gives the same images."""
    pipeline = subject.fresh()
    held = {
        name: value
        for name, value in vars(pipeline).items()
        if isinstance(value, torch.nn.Module) or hasattr(value, "set_timesteps")
    }
    known = [id(each) for each in pipeline.components.values()]
    forgotten = [name for name, value in held.items() if id(value) not in known]
    if forgotten:
        raise Violation(f"components lacks {', '.join(forgotten)}: it will not be saved or moved")
    wanted = subject.run(subject.fresh())
    require_same(subject.run(subject.rebuilt(pipeline)), wanted, "the images of a pipeline of the same components")


def shared_scheduler_is_not_spoilt(subject: PipelineUnderTest, given: Given) -> None:
    """Two pipelines may share a scheduler: making and calling one changes neither its configuration nor the images of
    the other."""
    pipeline = subject.fresh()
    scheduler = subject.scheduler(pipeline)
    name = next(name for name, each in pipeline.components.items() if each is scheduler)
    one = subject.rebuilt(pipeline, **{name: scheduler})
    two = subject.rebuilt(subject.fresh(), **{name: scheduler})
    wanted = subject.run(subject.rebuilt(subject.fresh(), **{name: copy.deepcopy(scheduler)}))
    subject.run(one, batch=2, seed=5, steps=MORE_STEPS)
    require_same(subject.run(two), wanted, "the images of a pipeline whose scheduler another one used")
    schedulers = [scheduler]
    with contextlib.suppress(TypeError):  # The pipeline's own may be what the pipeline has made of it already.
        schedulers.append(type(scheduler)())
    for each in schedulers:
        before = dict(getattr(each, "config", {}))
        subject.run(subject.rebuilt(subject.fresh(), **{name: each}))
        after = dict(getattr(each, "config", {}))
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            key = changed[0]
            raise Violation(
                f"the pipeline changed the configuration of the scheduler that was passed: {key} from "
                f"{before.get(key)!r} to {after.get(key)!r}"
            )


def optional_components_can_be_absent(subject: PipelineUnderTest, given: Given) -> None:
    """A pipeline without its optional components works, and is saved and loaded without them."""
    pipeline = subject.fresh()
    parameters = inspect.signature(subject.cls.__init__).parameters
    optional = [
        name
        for name in pipeline.components
        if name in getattr(subject.cls, "_optional_components", ())
        or (name in parameters and parameters[name].default is None)
    ]
    if not optional:
        raise NotApplicable("no component is optional")
    bare = subject.rebuilt(pipeline, **dict.fromkeys(optional))
    require_finite(subject.run(bare), f"the images without {', '.join(optional)}")
    with subject.saved() as folder:
        target = folder.parent / "bare"
        bare.save_pretrained(target)
        loaded = quiet(subject.cls.from_pretrained(target))
    present = [name for name in optional if loaded.components.get(name) is not None]
    if present:
        raise Violation(f"{', '.join(present)} is back after saving and loading without it")
    require_same(subject.run(loaded), subject.run(bare), f"the images after loading without {', '.join(optional)}")


def progress_bar_can_be_off(subject: PipelineUnderTest, given: Given) -> None:
    """With the progress bar off a call writes nothing; with it on, nothing to the standard output."""
    for on in (False, True):
        pipeline = subject.fresh()
        if on and hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=False)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            subject.run(pipeline)
        if out.getvalue():
            raise Violation(f"a call writes to the standard output: {out.getvalue()[:60]!r}")
        if err.getvalue() and not on:
            how = "with the progress bar off" if hasattr(pipeline, "set_progress_bar_config") else "that cannot be off"
            raise Violation(f"a call writes {err.getvalue()[:60]!r} {how}")


def foreign_code_needs_consent(subject: PipelineUnderTest, given: Given) -> None:
    """from_pretrained runs no Python file of a folder, whatever model_index.json says, without being told to."""
    component = next(name for name, each in subject.fresh().components.items() if each is not None)
    changes: dict[str, dict[str, Any]] = {
        "of a pipeline class": {"_class_name": ["own_code", "Own"]},
        "of a component class": {component: ["own_code", "Own"]},
    }
    for what, change in changes.items():
        with subject.saved() as folder:
            marker = folder.parent / "ran"
            _plant(folder, change, marker)
            for loader in _loaders(subject.cls):
                with contextlib.suppress(Exception):
                    loader.from_pretrained(folder)
                if marker.exists():
                    raise Violation(
                        f"{loader.__name__}.from_pretrained ran the code {what} out of the folder, without consent"
                    )


def _loaders(cls: type) -> list[Any]:
    """The class and the most general of its bases that can load."""
    return list(dict.fromkeys([cls, [base for base in cls.__mro__ if hasattr(base, "from_pretrained")][-1]]))


def _plant(folder: Path, change: dict[str, Any], marker: Path) -> None:
    """Name code in model_index.json, and put it wherever a loader may look for it."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    (folder / INDEX).write_text(json.dumps(index | change), encoding="utf-8")
    for place in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        (place / "own_code.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")


CONTRACTS = (
    Contract(save_and_load_give_equal_images),
    Contract(model_index_names_every_component),
    Contract(to_moves_every_network),
    Contract(components_rebuild_the_pipeline),
    Contract(shared_scheduler_is_not_spoilt),
    Contract(optional_components_can_be_absent),
    Contract(progress_bar_can_be_off),
    Contract(foreign_code_needs_consent),
)
