"""Build the image with buildah, on a base from a registry or on one made here of Debian's packages.

As root, and in a storage of its own, so that no image of it is left on the machine. Nothing is pulled for the stand-in.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CONTAINER = "infra/container/Containerfile"
IMAGE = "localhost/wardround-agent"
STAND_IN = "localhost/wardround-stand-in"
# What python:3.11-slim-bookworm has that the agent could notice; its Python lies in /usr/local, this one in /usr.
_PACKAGES = "python3.11-venv,python3-distutils,ca-certificates,netbase,tzdata"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the build takes things from. `torch_index` None is the Containerfile's own, empty is pip's own index."""

    base: str | None = None  # None: the stand-in
    torch_index: str | None = None
    pip_conf: Path | None = None
    ca: Path | None = None
    mounts: Sequence[Path] = ()  # folders of wheels that pip.conf names, at the same place in the build


@dataclass(frozen=True, slots=True)
class Engine:
    """buildah and podman over one storage in `work`."""

    work: Path

    def command(self, program: str, *arguments: str) -> list[str]:
        return [
            program, "--root", str(self.work / "storage"), "--runroot", str(self.work / "run"),
            "--storage-driver", "overlay", *arguments,
        ]  # fmt: skip

    def do(self, program: str, *arguments: str) -> str:
        """Its standard output; all else goes to the terminal. Raises `subprocess.CalledProcessError`."""
        words = self.command(program, *arguments)
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def remove(self) -> None:
        """All images, and the mount that keeps the storage from being deleted."""
        subprocess.run(self.command("podman", "rmi", "--all", "--force"), check=False, stdout=subprocess.DEVNULL)
        subprocess.run(["umount", self.work / "storage" / "overlay"], check=False, stderr=subprocess.DEVNULL)


def make_stand_in(engine: Engine) -> str:
    """A base of Debian's packages, for where docker.io is not reached; its name."""
    root = engine.work / "base"
    words = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    for fetched in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / fetched)
    container = engine.do("buildah", "from", "scratch")
    engine.do("buildah", "add", "--quiet", container, str(root))
    engine.do("buildah", "commit", "--quiet", "--rm", container, STAND_IN)
    return STAND_IN


def build_options(sources: Sources, base: str) -> list[str]:
    """Options of buildah-build(1). No login is among them: pip's settings and the CA go in as secrets."""
    found = [f"--build-arg=BASE={base}"]
    if sources.torch_index is not None:
        found.append(f"--build-arg=TORCH_INDEX={sources.torch_index}")
    secrets = {"pip.conf": sources.pip_conf, "ca.pem": sources.ca}
    found += [f"--secret=id={name},src={path}" for name, path in secrets.items() if path is not None]
    return found + [f"--volume={folder}:{folder}:ro" for folder in sources.mounts]


def build(engine: Engine, sources: Sources) -> str:
    """The image's name. Raises `subprocess.CalledProcessError`."""
    base = make_stand_in(engine) if sources.base is None else sources.base
    words = engine.command(
        "buildah", "build", "--isolation=chroot", f"--tag={IMAGE}", f"--file={_CONTAINER}",
        f"--ignorefile={_CONTAINER}.dockerignore", *build_options(sources, base), ".",
    )  # fmt: skip
    subprocess.run(words, check=True, cwd=_ROOT)
    return IMAGE
