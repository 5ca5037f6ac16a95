"""A self-contained folder for a community pipeline, from the templates, with its fixtures recorded on this machine."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from conformance.errors import ConformanceError

TEMPLATES = Path(__file__).parent / "templates" / "pipeline"
SUFFIX = ".j2"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class ProjectName:
    """One name in its three forms.

    Attributes:
        system: of the fixtures, `my-sampler`.
        words: in prose, `My Sampler`.
        camel: before `Pipeline` and `Scheduler`, `MySampler`.
    """

    system: str
    words: str
    camel: str

    @classmethod
    def parse(cls, name: str) -> ProjectName:
        """From `my-sampler`, `my_sampler` or `MySampler`.

        Raises:
            ConformanceError: not such a name, or one whose classes `diffusers_ref` has already.
        """
        if not _NAME.fullmatch(name):
            raise ConformanceError(
                f"name {name!r}; allowed: letters and digits, in words joined by - or _, beginning with a letter"
            )
        parts = re.split(r"[-_]", name)
        camel = "".join(part[0].upper() + part[1:] for part in parts)
        split = re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+", camel)
        from diffusers_ref.registry import MODULE_OF_CLASS

        taken = [made for made in (f"{camel}Pipeline", f"{camel}Scheduler") if made in MODULE_OF_CLASS]
        if taken:
            raise ConformanceError(f"name {name!r}: diffusers_ref has {', '.join(taken)} already; take another")
        return cls("-".join(word.lower() for word in split), " ".join(split), camel)


def write_project(name: str, folder: Path) -> Path:
    """Write the folder, completely or not at all, and record its fixtures from the placeholder original.

    Returns:
        The folder, as it was given.

    Raises:
        ConformanceError: a name that is none, a folder that exists and is not empty, or one that cannot be written.
    """
    project = ProjectName.parse(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConformanceError(f"{folder} exists and is {'not empty' if folder.is_dir() else 'a file'}; choose another")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{project.system}.") as temporary:
            draft = Path(temporary) / "project"
            _render(project, draft)
            _record(draft)
            os.chmod(draft, 0o755)
            if folder.exists():
                folder.rmdir()
            os.replace(draft, folder)
    except OSError as error:
        raise ConformanceError(f"{folder}: cannot be written: {error}") from error
    return folder


def _render(project: ProjectName, folder: Path) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from conformance import __version__
    from conformance.recorders.folder import content_digest

    shutil.copytree(TEMPLATES, folder, ignore=shutil.ignore_patterns(f"*{SUFFIX}", "__pycache__"))
    values = {
        "system": project.system,
        "words": project.words,
        "name": project.camel,
        "version": __version__,
        "commit": content_digest(folder / "original"),
    }
    templates = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    for path in sorted(TEMPLATES.glob(f"*{SUFFIX}")):
        text = templates.get_template(path.name).render(values)
        (folder / path.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")


def _record(folder: Path) -> None:
    from conformance.recorders.recording import record

    list(record(str(folder / "recorder.py"), folder / "original", folder / "fixtures"))
