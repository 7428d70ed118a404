"""`python -m infra.container`: build the agent's image without a Docker engine, and run it within its walls."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.container.building import Engine, Sources, build
from infra.container.trial import IMAGES, USER, Trial, TrialFailed

_PROGRAMS = ("buildah", "podman", "debootstrap")
_DESCRIPTION = """\
Builds infra/container/Containerfile and runs the image as infra/container/compose.yaml says, with images made up here.
As root, with Debian's packages buildah, podman, runc, catatonit, conmon and debootstrap; ten minutes and 6 GB, which
are given back."""
_EPILOG = """\
Behind a mirror, as `docker build` would be told it:
  python -m infra.container --base mirror.hospital.example/library/python:3.11-slim-bookworm --pip-conf pip.conf
Where wheels lie in a folder:
  python -m infra.container --torch-index '' --pip-conf pip.conf --mount /opt/wheels   # find-links = /opt/wheels"""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _options(arguments)
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("only root can make the base and the walls", file=sys.stderr)
        return 2
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="wardround-image-", dir=chosen.work) as work:
        engine = Engine(Path(work))
        sources = Sources(chosen.base, chosen.torch_index, chosen.pip_conf, chosen.ca, chosen.mount)
        try:
            image = build(engine, sources)
            size = int(engine.do("podman", "image", "inspect", "--format={{.Size}}", image))
            print(f"{image}: {size / 1e6:,.0f} MB")
            _try(engine, image)
        except (TrialFailed, subprocess.CalledProcessError) as why:
            print(f"FAILED: {why}", file=sys.stderr)
            return 1
        finally:
            engine.remove()
    return 0


def _try(engine: Engine, image: str) -> None:
    from infra.hospitals.phantoms import make_phantom_hospitals

    state = engine.work / "state"
    state.mkdir(mode=0o700)
    os.chown(state, USER, USER)
    (archive,) = make_phantom_hospitals(engine.work / "archive", 1, IMAGES)
    Trial(engine, image, state, archive, print).run()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.container",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", help="image with Python 3.11; without it one is made of Debian's packages")
    parser.add_argument("--torch-index", metavar="URL", help="where torch comes from; '' is pip's own index")
    parser.add_argument("--pip-conf", type=Path, metavar="FILE", help="pip's settings while it builds")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="a CA, for cert = /run/secrets/ca.pem in them")
    parser.add_argument(
        "--mount", type=Path, metavar="FOLDER", action="append", default=[], help="of wheels; repeat it"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where 6 GB are free; else TMPDIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
