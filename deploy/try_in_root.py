# SPDX-License-Identifier: Apache-2.0
r"""Runs a stage of the Containerfile in clean Debian roots, where there is no container engine.

    sudo python deploy/try_in_root.py --target cpu --into build/roots \
        --then 'vllm speak "Hello there." --output hello.wav && vllm transcribe hello.wav'

Every stage whose base is an image of Debian begins with what debootstrap makes, one that has
another stage as its base with a copy of that one's root, as a container engine would. What cannot
be shown so is what the engine itself does: layers, mounts, ports. Needs root and debootstrap.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
SUITE = "bookworm"
DEBIAN = f"debian:{SUITE}-slim"


@dataclass
class Stage:
    """A stage of a Containerfile.

    Attributes:
        base: image, or another stage.
        steps: (instruction, its text) in order.
    """

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Containerfile, by name.

    Raises:
        ValueError: a stage has no name.
    """
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            named = re.fullmatch(r"(\S+) AS (\S+)", rest)
            if named is None:
                raise ValueError(f"FROM must be 'IMAGE AS NAME', not {rest!r}")
            stages[named[2]] = current = Stage(named[1])
        else:
            current.steps.append((instruction, rest.strip()))
    return stages


@contextmanager
def mounted(root: Path, binds: Mapping[Path, str]) -> Iterator[None]:
    """The kernel's file systems and some folders inside of a root."""
    pairs = [(Path(name), name.lstrip("/")) for name in ("/proc", "/sys", "/dev", "/dev/shm")]
    pairs += [(source, target.lstrip("/")) for source, target in binds.items()]
    done: list[Path] = []
    try:
        for source, target in pairs:
            place = root / target
            if source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            subprocess.run(["mount", "--bind", str(source), str(place)], check=True)
            done.append(place)
        yield
    finally:
        for place in reversed(done):
            subprocess.run(["umount", "--lazy", str(place)], check=False)


class Roots:
    """The stages' roots.

    Args:
        folder: of all of them.
        stages: of the file.
        arguments: of the build, in place of those that ARG gives.
        environment: of all steps, beside what ENV sets.
        binds: folders and files that every root sees, and where, such as pip's settings.
        mirror: of Debian; "" for debootstrap's own.
    """

    def __init__(
        self,
        folder: Path,
        stages: Mapping[str, Stage],
        arguments: Mapping[str, str],
        environment: Mapping[str, str],
        binds: Mapping[Path, str],
        mirror: str = "",
    ) -> None:
        self._folder, self._stages = folder, stages
        self._arguments, self._environment, self._binds = arguments, environment, binds
        self._mirror = mirror

    def path(self, name: str) -> Path:
        """Where a stage's root is."""
        return self._folder / name

    def make(self, name: str) -> None:
        """Make a stage and those that it needs, unless it is there."""
        if (self.path(name) / "complete").exists():
            return
        root, stage = self.path(name), self._stages[name]
        shutil.rmtree(root, ignore_errors=True)
        base = stage.base
        if base in self._stages:
            self.make(base)
        elif base.endswith(DEBIAN):
            base = self._make_debian()
        else:
            raise ValueError(f"--target must be a stage on {DEBIAN}, not on {base}")
        subprocess.run(["cp", "-a", str(self.path(base)), str(root)], check=True)
        (root / "complete").unlink()
        inherited = self._settings(stage.base) if stage.base in self._stages else []
        self.run(name, [*inherited, *stage.steps])
        (root / "complete").touch()

    def _settings(self, name: str) -> list[tuple[str, str]]:
        """The steps that say where, as whom and with which variables the next ones run."""
        stage = self._stages[name]
        before = self._settings(stage.base) if stage.base in self._stages else []
        return before + [step for step in stage.steps if step[0] in ("USER", "WORKDIR", "ENV")]

    def run_in(self, name: str, command: str) -> None:
        """Run a command as a container of the stage would."""
        self.run(name, [*self._settings(name), ("RUN", command)])

    def _make_debian(self) -> str:
        """The name of the root that all others begin with."""
        name = "debian"
        root = self.path(name)
        if not (root / "complete").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            command = ["debootstrap", "--variant=minbase", SUITE, str(root), self._mirror]
            subprocess.run([part for part in command if part], check=True)
            (root / "complete").touch()
        return name

    def run(self, name: str, steps: Sequence[tuple[str, str]]) -> None:
        """Run steps in a stage's root."""
        root, user, folder = self.path(name), "root", "/"
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | self._environment
        for instruction, text in steps:
            print(f"--- {name}: {instruction} {text}", flush=True)
            if instruction == "WORKDIR":
                folder = text
                (root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction == "USER":
                user = text
            elif instruction in ("ARG", "ENV"):
                for pair in shlex.split(text):
                    key, _, value = pair.partition("=")
                    if instruction == "ARG":
                        value = self._arguments.get(key, value)
                    environment[key] = re.sub(
                        r"\$(\w+)", lambda match: environment.get(match[1], ""), value
                    )
            elif instruction == "COPY":
                if text != ". .":
                    raise ValueError(f"COPY must be of the whole tree, not {text!r}")
                files = subprocess.run(
                    ["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE
                )
                target = ["tar", "-x", "-C", str(root / folder.lstrip("/"))]
                subprocess.run(target, input=files.stdout, check=True)
            elif instruction == "RUN":
                self._run(root, text, user, folder, environment)
            elif instruction not in ("EXPOSE", "STOPSIGNAL", "CMD"):
                raise ValueError(f"{instruction} is not known")

    def _run(
        self, root: Path, text: str, user: str, folder: str, environment: Mapping[str, str]
    ) -> None:
        binds = dict(self._binds)
        mounts = re.compile(r"--mount=type=bind,from=([\w-]+),source=(\S+),target=(\S+)\s+")
        for stage, source, target in mounts.findall(text):
            self.make(stage)
            binds[self.path(stage) / source.lstrip("/")] = target
        command = f"cd {shlex.quote(folder)} && {mounts.sub('', text)}"
        variables = [f"{key}={value}" for key, value in environment.items()]
        home = "/root" if user == "root" else f"/home/{user}"
        with mounted(root, binds):
            subprocess.run(
                [
                    *("chroot", f"--userspec={user}", str(root)),
                    *("/usr/bin/env", "-i", f"HOME={home}", *variables, "/bin/sh", "-c", command),
                ],
                check=True,
            )


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts)


def main() -> None:
    """Make a stage, and run a command in it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--target", default="cpu", help="stage")
    parser.add_argument("--into", type=Path, required=True, help="folder of the roots")
    parser.add_argument("--then", default="", help="command to run in the stage at last")
    parser.add_argument("--arg", action="append", default=[], help="NAME=VALUE, as of a build")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE, of all steps")
    parser.add_argument("--mirror", default="", help="of Debian; default: debootstrap's own")
    parser.add_argument(
        "--bind", action="append", default=[], help="PATH or PATH:PATH_INSIDE, that roots see"
    )
    options = parser.parse_args()
    if shutil.which("debootstrap") is None:
        sys.exit("debootstrap is not installed: apt-get install debootstrap")
    stages = read_stages(CONTAINERFILE.read_text(encoding="utf-8"))
    if options.target not in stages:
        sys.exit(f"--target must be one of {', '.join(stages)}, not {options.target}")
    binds = {Path(one.split(":")[0]): one.split(":")[-1] for one in options.bind}
    given = _pairs(options.arg), _pairs(options.env), binds, options.mirror
    roots = Roots(options.into.resolve(), stages, *given)
    roots.make(options.target)
    if options.then:
        roots.run_in(options.target, options.then)


if __name__ == "__main__":
    main()
