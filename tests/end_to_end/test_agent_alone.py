"""A hospital installs `wardround[agent]` and nothing of the coordinator: proven in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from boundary.identity import SigningIdentity
from flows.demo.archive import compose_plan, find_sites, look_at
from infra.hospitals.phantoms import make_phantom_hospitals

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"prefect", "mlflow", "mlflow-skinny", "fastapi", "starlette", "sqlalchemy", "alembic", "granian"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the built wheel and what its agent extra asks for, nothing else.

    The files of those distributions are linked from this environment: the same bytes that pip would unpack, in
    seconds instead of minutes. What the extra forgets to name is missing there.
    """
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("wardround-*.whl")
    target = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    for name in needed_by("wardround", {"agent"}) - {"wardround", "pip", "setuptools"}:
        link(name, target)
    subprocess.run([folder / "env" / "bin" / "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    return folder / "env" / "bin"


def needed_by(name: str, extras: set[str]) -> set[str]:
    """The distribution and all it requires here, by canonical name."""
    found: set[str] = set()
    waiting = [(name, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        found.add(canonicalize_name(one[0]))
        for text in metadata.requires(one[0]) or []:
            wanted = Requirement(text)
            contexts = [{"extra": extra} for extra in (*one[1], "")]
            if wanted.marker is None or any(wanted.marker.evaluate(context) for context in contexts):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return found


def link(name: str, target: Path) -> None:
    for file in metadata.files(name) or []:
        if file.parts[0] == ".." or "__pycache__" in file.parts:
            continue
        place = target / Path(*file.parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        source = Path(str(file.locate()))
        if source.suffix == ".py" and (code := Path(cache_from_source(str(source)))).exists():
            _link(code, Path(cache_from_source(str(place))))  # the same bytes make the same byte code
        if not place.exists():
            shutil.copy2(file.locate(), place) if place.suffix == ".pth" else _link(Path(str(file.locate())), place)


def _link(source: Path, place: Path) -> None:
    if place.exists():
        return
    place.parent.mkdir(exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # another file system
        place.symlink_to(source)


def said(*command: str | Path, expect: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_of_the_coordinator_is_installed(alone: Path) -> None:
    installed = {row["name"].lower() for row in json.loads(said(alone / "pip", "list", "--format", "json"))}
    assert "wardround" in installed
    assert installed & FORBIDDEN == set()


def test_the_agent_starts_and_its_child_reads_and_trains(alone: Path, tmp_path: Path) -> None:
    make_phantom_hospitals(tmp_path / "archives", 3, images_per_hospital=24)
    sites = find_sites(tmp_path / "archives")
    state = tmp_path / "state"
    said(alone / "silo-agent", "--help")
    said(
        alone / "silo-agent", "init", "--site", sites[0].silo, "--dicom", sites[0].dicom, "--labels", sites[0].labels,
        "--dataset", "demo-images", "--state", state,
    )  # fmt: skip
    assert "policy begin" in said(alone / "silo-agent", "run", "--state", state, expect=6)

    plan = _plan(compose_plan(sites, 1, look_at(sites), 0.0))
    common = {"plan": plan, "study": "demo-00000000", "device": "cpu", "cache": str(tmp_path / "cache")}
    scan = common | {
        "do": "scan", "source": {"kind": "folder", "path": str(sites[0].dicom)},
        "labels": {"kind": "csv", "path": str(sites[0].labels)},
        "key_file": str(state / "dataset.key"), "withdrawn": {"before": [], "after": []},
    }  # fmt: skip
    train = common | {"do": "train", "model": str(tmp_path / "model"), "out": str(tmp_path / "out" / "vector")}
    (tmp_path / "model").write_bytes(_initial(alone, plan))
    events = [json.loads(line) for line in _child(alone, [scan, train]).splitlines()]
    done = [event["result"] for event in events if event["event"] == "done"]
    assert len(done) == 2, events[-3:]
    assert done[0]["used"] == 24
    assert (tmp_path / "out" / "vector").stat().st_size == 4 * 8 + 4 * done[1]["parameters"]


def _plan(text: str) -> dict[str, object]:
    import tomllib

    plan = tomllib.loads(text)
    keys = [SigningIdentity.generate().public.text for _ in range(8)]
    plan["hospitals"] = [{"silo": silo, "signing_key": key} for silo, key in zip(plan["hospitals"], keys, strict=False)]
    plan["purpose"]["expires"] = str(plan["purpose"]["expires"])
    return plan


def _initial(alone: Path, plan: dict[str, object]) -> bytes:
    script = (
        "import json, sys; from boundary.plan import parse_plan; from boundary.tensors import *; "
        "from models.parameters import initial_tensors; p = parse_plan(json.load(sys.stdin)); "
        "t = initial_tensors(p.model, 2); m = manifest_of(t); sys.stdout.buffer.write(pack(flatten(t, m), m))"
    )
    done = subprocess.run(
        [alone / "python", "-c", script], input=json.dumps(plan).encode(), capture_output=True, check=True
    )
    return done.stdout


def _child(alone: Path, commands: list[dict[str, object]]) -> str:
    """Talk to the child as the daemon does: the next command after the answer to the last."""
    with subprocess.Popen(
        [alone / "python", "-u", "-m", "silo_agent.trainer", "--threads", "2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        heard = []
        for command in commands:
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
            while line := child.stdout.readline():
                heard.append(line)
                if json.loads(line)["event"] in {"done", "failed", "cancelled"}:
                    break
        child.stdin.close()
    return "".join(heard)
