"""What is to be verified: a class in a file, in a module, or in a Hub repository at one commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from conformance.errors import ConformanceError
from conformance.implementations.user_class import UserImplementation

HUB = "hub:"
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]*))?(:(?P<cls>\w+))?")


def open_target(location: str, stands_for: Sequence[str] = (), trust_remote_code: bool = False) -> UserImplementation:
    """The class at `path/to/file.py:Class`, `package.module:Class` or `hub:owner/name@commit[:Class]`.

    The last is the pipeline.py of a repository; it is downloaded and run only with `trust_remote_code`, at a commit
    given in full, so that the code that was read is the code that runs. Files and modules run because they are named.

    Args:
        stands_for: the fixtures' classes that it stands for, where names do not say it.

    Raises:
        ConformanceError: nothing there, not a class under test, or a repository without consent or pinned commit.
    """
    if location.startswith(HUB):
        location = _hub_class(location, trust_remote_code)
    if ":" not in location:
        raise ConformanceError(
            f"{location!r} names no class; allowed: path/to/file.py:Class, package.module:Class, "
            "hub:owner/name@commit[:Class]"
        )
    return UserImplementation(location, stands_for)


def _hub_class(location: str, trust_remote_code: bool) -> str:
    """`file.py:Class` of the downloaded file."""
    from diffusers_ref import ConfigError, LoadingError
    from diffusers_ref.custom_code import find_pipeline_file

    parts = _REPOSITORY.fullmatch(location.removeprefix(HUB))
    if parts is None:
        raise ConformanceError(f"{location!r}; allowed: hub:owner/name@commit[:Class]")
    name = parts["name"]
    if Path(name).exists():
        raise ConformanceError(f"{location}: there is a local folder {name} here; name its file, or run elsewhere")
    try:
        file = find_pipeline_file(name, trust_remote_code=trust_remote_code, revision=parts["revision"])
    except ConfigError as error:
        hint = "" if trust_remote_code else " (here: --trust-remote-code)"
        raise ConformanceError(f"{location}: {error}{hint}") from None
    except LoadingError as error:
        raise ConformanceError(f"{location}: {error}") from None
    return f"{file}:{parts['cls'] or _only_pipeline(file)}"


def _only_pipeline(file: Path) -> str:
    """The name of the one pipeline class that a file defines, read without running it."""
    import ast

    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConformanceError(f"{file}: not a Python file: {error}") from None
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline")]
    if len(names) != 1:
        found = ", ".join(names) or "no class whose name ends in Pipeline"
        raise ConformanceError(f"{file} defines {found}; say which with hub:owner/name@commit:Class")
    return names[0]
