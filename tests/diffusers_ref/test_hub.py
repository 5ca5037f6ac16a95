"""Loading from the Hub for real: client library, cache and protocol, against a server on the loopback device.

The client reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, so it is imported anew for each environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, commit_of, read_files
from tiny_pipelines import tiny_ddim

from diffusers_ref import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel

REPOSITORY = "someone/tiny-ddim"
CODE_REPOSITORY = "someone/code"


@contextlib.contextmanager
def client(cache: Path, **environment: str) -> Iterator[None]:
    """In the block `huggingface_hub` is one that started in this environment, with this cache and no proxy."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]

    own = {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("HF_", "HUGGING")) or "proxy" in name.lower():
                patch.delenv(name)
        for name, value in (own | environment).items():
            patch.setenv(name, value)
        for name in loaded():
            patch.delitem(sys.modules, name)
        try:
            yield
        finally:
            for name in loaded():
                del sys.modules[name]


def results_of(calls: dict[str, Callable[[], Any]], server: HubServer | None = None) -> dict[str, Any]:
    """What each call returns, or its error as text; `server` gets a mark before each."""
    results: dict[str, Any] = {}
    for name, call in calls.items():
        if server is not None:
            urllib.request.urlopen(f"{server.endpoint}/mark/{name}").read()
        try:
            results[name] = call()
        except Exception as error:  # noqa: BLE001
            results[name] = f"{type(error).__name__}: {error}"
    return results


def load(name: str = REPOSITORY, **options: Any) -> DDIMPipeline:
    return DDIMPipeline.from_pretrained(name, **options)


def checksum(pipeline: DDIMPipeline) -> float:
    return weights(pipeline.unet)


def weights(network: UNet2DModel) -> float:
    return sum(parameter.double().sum().item() for parameter in network.parameters())


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
    """What comes from the server, the server with what it was asked for, and the cache."""
    commit = commit_of(repositories[CODE_REPOSITORY]["main"])
    code = {"custom_pipeline": CODE_REPOSITORY}
    trusted = code | {"trust_remote_code": True}
    calls = {
        "variant": lambda: checksum(load(variant="fp16")),
        "plain": lambda: checksum(load()),
        "again": lambda: checksum(load()),
        "revision": lambda: checksum(load(revision="v1")),
        "any": lambda: type(DiffusionPipeline.from_pretrained(REPOSITORY)),
        "network": lambda: weights(UNet2DModel.from_pretrained(REPOSITORY, subfolder="unet")),
        "scheduler": lambda: DDIMScheduler.from_pretrained(REPOSITORY, subfolder="scheduler").config,
        "no-repository": lambda: load("someone/absent"),
        "no-revision": lambda: load(revision="absent"),
        "no-variant": lambda: load(variant="bf16"),
        "not-a-pipeline": lambda: load(CODE_REPOSITORY),
        "code": lambda: load(**code),
        "trusted-code": lambda: load(**trusted),
        "code-at-a-branch": lambda: load(**trusted, custom_revision="main"),
        "pinned-code": lambda: load(**trusted, custom_revision=commit),
    }
    cache = tmp_path_factory.mktemp("cache")
    with HubServer(repositories) as server, client(cache, HF_ENDPOINT=server.endpoint):
        return results_of(calls, server), server, cache


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
    assert results["any"] is DDIMPipeline


def test_a_revision_is_its_own_download(online):
    results, server, _ = online
    assert results["revision"] == pytest.approx(checksum(tiny_ddim(seed=1)), rel=1e-12)
    assert "unet/diffusion_pytorch_model.safetensors" in server.downloads_after("revision")


def test_parts_load_alone(online):
    results, _, _ = online
    assert results["network"] == results["plain"]
    assert results["scheduler"].num_train_timesteps == 40


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
    assert online[0]["pinned-code"].mine is True


def test_a_prepared_cache_serves_offline(online, caplog):
    results, _, cache = online
    calls = {
        "plain": lambda: checksum(load()),
        "revision": lambda: checksum(load(revision="v1", local_files_only=True)),
        "absent": lambda: load("someone/absent"),
        "absent-local": lambda: load("someone/absent", local_files_only=True),
    }
    with client(cache, HF_HUB_OFFLINE="1"):
        offline = results_of(calls)
    assert "cached files are used" not in caplog.text
    assert offline["plain"] == results["plain"] and offline["revision"] == results["revision"]
    assert "someone/absent at revision main: the Hub cannot be reached" in offline["absent"]
    assert "only local files are allowed and the cache does not hold it" in offline["absent-local"]


def test_a_hub_that_is_down_is_replaced_by_the_cache(online, caplog):
    results, _, cache = online
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        with client(cache, HF_ENDPOINT=f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"):
            down = results_of({"plain": lambda: checksum(load()), "absent": lambda: load("someone/absent")})
    assert down["plain"] == results["plain"]
    assert f"{REPOSITORY} at revision main: the Hub cannot be reached" in caplog.text
    assert "so the cached files are used" in caplog.text
    assert "LoadingError: someone/absent at revision main: the Hub cannot be reached" in down["absent"]
