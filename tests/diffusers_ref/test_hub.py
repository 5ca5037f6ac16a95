"""Loading from the Hub for real: client library, cache and protocol, against a server on the loopback device.

The client reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so the loading is done in other processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, commit_of, read_files
from tiny_pipelines import tiny_ddim

REPOSITORY = "someone/tiny-ddim"
CODE_REPOSITORY = "someone/code"

CHILD = """
import json, os, sys, urllib.request
from diffusers_ref import *

def weights(model):
    return sum(parameter.double().sum().item() for parameter in getattr(model, "unet", model).parameters())

results = {}
for name, expression in json.load(sys.stdin).items():
    if os.environ.get("MARKS"):
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark/" + name).read()
    try:
        results[name] = eval(expression)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
json.dump(results, sys.stdout)
"""


def evaluate(expressions: dict[str, str], cache: Path, **environment: str) -> dict[str, Any]:
    """The values of expressions (or the errors), in a fresh process with a Hub cache and environment of its own."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    own = {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(expressions),
        env=kept | own | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def load(name: str = REPOSITORY, **options: object) -> str:
    """The expression that loads a pipeline."""
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"DDIMPipeline.from_pretrained({name!r}{arguments})"


def checksum(pipeline) -> float:
    return sum(parameter.double().sum().item() for parameter in pipeline.unet.parameters())


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """One repository with two revisions, a variant and much that is not wanted; one with code."""
    folder = tmp_path_factory.mktemp("repository")
    tiny_ddim(seed=1).save_pretrained(folder / "v1")
    pipeline = tiny_ddim(seed=2)
    pipeline.save_pretrained(folder / "main")
    tiny_ddim(seed=3).unet.save_pretrained(folder / "main" / "unet", variant="fp16")
    torch.save(pipeline.unet.state_dict(), folder / "main" / "unet" / "diffusion_pytorch_model.bin")
    (folder / "main" / "README.md").write_text("not wanted")
    (folder / "main" / "pipeline.py").write_text("raise SystemExit('this must not run')")
    (folder / "main" / "unet" / "model.py").write_text("raise SystemExit('neither must this')")
    (folder / "main" / "vae").mkdir()
    (folder / "main" / "vae" / "config.json").write_text("{}")
    code = {"pipeline.py": b"import diffusers_ref\nclass MyPipeline(diffusers_ref.DDIMPipeline):\n    mine = True\n"}
    revisions = {"main": read_files(folder / "main"), "v1": read_files(folder / "v1")}
    return {REPOSITORY: revisions, CODE_REPOSITORY: {"main": code}}


@pytest.fixture(scope="module")
def online(repositories, tmp_path_factory):
    """What a process gets from the server, with what it asked for; and its cache."""
    commit = commit_of(repositories[CODE_REPOSITORY]["main"])
    code = {"custom_pipeline": CODE_REPOSITORY}
    trusted = code | {"trust_remote_code": True}
    expressions = {
        "variant": f"weights({load(variant='fp16')})",
        "plain": f"weights({load()})",
        "again": f"weights({load()})",
        "revision": f"weights({load(revision='v1')})",
        "any": f"type(DiffusionPipeline.from_pretrained({REPOSITORY!r})).__name__",
        "network": f"weights(UNet2DModel.from_pretrained({REPOSITORY!r}, subfolder='unet'))",
        "scheduler": f"DDIMScheduler.from_pretrained({REPOSITORY!r}, subfolder='scheduler').config.num_train_timesteps",
        "no-repository": load("someone/absent"),
        "no-revision": load(revision="absent"),
        "no-variant": load(variant="bf16"),
        "not-a-pipeline": load(CODE_REPOSITORY),
        "code": load(**code),
        "trusted-code": load(**trusted),
        "code-at-a-branch": load(**trusted, custom_revision="main"),
        "pinned-code": f"{load(**trusted, custom_revision=commit)}.mine",
    }
    cache = tmp_path_factory.mktemp("cache")
    with HubServer(repositories) as server:
        results = evaluate(expressions, cache, HF_ENDPOINT=server.endpoint, MARKS="1")
    return results, server, cache


def test_a_pipeline_loads_and_only_needed_files_are_downloaded(online):
    results, server, _ = online
    assert results["variant"] == pytest.approx(checksum(tiny_ddim(seed=3)), rel=1e-12)
    assert server.downloads_after("variant") == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert results["plain"] == pytest.approx(checksum(tiny_ddim(seed=2)), rel=1e-12)
    assert server.downloads_after("plain") == ["unet/diffusion_pytorch_model.safetensors"]
    assert server.downloads_after("again") == []
    assert results["any"] == "DDIMPipeline"


def test_a_revision_is_its_own_download(online):
    results, server, _ = online
    assert results["revision"] == pytest.approx(checksum(tiny_ddim(seed=1)), rel=1e-12)
    assert "unet/diffusion_pytorch_model.safetensors" in server.downloads_after("revision")


def test_parts_load_alone(online):
    results, _, _ = online
    assert results["network"] == results["plain"]
    assert results["scheduler"] == 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-repository", "LoadingError: 'someone/absent' is neither a local folder nor a Hub repository"),
        ("no-revision", f"LoadingError: the Hub repository {REPOSITORY} has no revision 'absent'"),
        ("no-variant", "no weights of variant 'bf16'; variants present: fp16"),
        ("not-a-pipeline", "holds no model_index.json, so it is not a pipeline"),
        ("code", "would run code from the Hub: read it, then pass trust_remote_code=True"),
        ("trusted-code", "custom_revision must be a commit hash of 40 digits, not None"),
        ("code-at-a-branch", "custom_revision must be a commit hash of 40 digits, not 'main'"),
    ],
)
def test_what_is_not_there_or_not_allowed(online, name, message):
    assert message in online[0][name]


def test_code_runs_when_it_is_trusted_and_pinned(online):
    assert online[0]["pinned-code"] is True


@pytest.fixture(scope="module")
def unconnected(online):
    """What two processes get from the cache: one is told to be offline, the other finds the server down."""
    _, server, cache = online  # The server has been shut down by now.
    offline = {
        "plain": f"weights({load()})",
        "revision": f"weights({load(revision='v1', local_files_only=True)})",
        "absent": load("someone/absent"),
        "absent-local": load("someone/absent", local_files_only=True),
    }
    down = {"plain": f"weights({load()})", "absent": load("someone/absent")}
    with ThreadPoolExecutor() as threads:
        first = threads.submit(evaluate, offline, cache, HF_HUB_OFFLINE="1")
        second = threads.submit(evaluate, down, cache, HF_ENDPOINT=server.endpoint)
        return first.result(), second.result()


def test_a_prepared_cache_serves_offline(online, unconnected):
    results, offline = online[0], unconnected[0]
    assert offline["plain"] == results["plain"] and offline["revision"] == results["revision"]
    assert "someone/absent at revision main: the Hub cannot be reached" in offline["absent"]
    assert "only local files are allowed and the cache does not hold it" in offline["absent-local"]


def test_a_hub_that_is_down_is_replaced_by_the_cache(online, unconnected):
    results, down = online[0], unconnected[1]
    assert down["plain"] == results["plain"]
    assert "LoadingError: someone/absent at revision main: the Hub cannot be reached" in down["absent"]
