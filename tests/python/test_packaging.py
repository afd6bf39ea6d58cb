"""What is built: the wheel, its metadata, and the environment in which it is built."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NIXL = "nixl-cu12==1.5.1"


def plain_environment() -> dict[str, str]:
    """The environment of a user's shell: without what the checkout, its venv or a running make would add."""
    ours = re.compile(r"DYNAMO_NIXL_|MAKE|MFLAGS|NIXL_|PYTEST_|PYTHON|UCX_|VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


def run(*command: str | Path, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )


def succeed(*command: str | Path, cwd: Path = ROOT) -> str:
    result = run(*command, cwd=cwd, environment=plain_environment())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    succeed("make", "wheel", f"DIST={folder}")
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.timeout(280)
def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"dynamo_nixl-[^-]+-cp311-abi3-(manylinux|linux)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"dynamo_nixl/_core.abi3.so", "dynamo_nixl/_core.pyi", "dynamo_nixl/py.typed"} <= names
    assert not {name for name in names if not re.match(r"dynamo_nixl(-[^/]+\.dist-info)?/", name)}


@pytest.mark.timeout(280)
def test_pip_builds_the_same_wheel_through_the_wrapper(wheel: Path, tmp_path: Path) -> None:
    # Without isolation, so that libclang lies where it did and cargo need not build everything anew.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    built = run(*command, cwd=tmp_path, environment={**plain_environment(), "PATH": path})
    assert built.returncode == 0, built.stdout + built.stderr
    (by_pip,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(by_pip) as other:
        assert {name for name in one.namelist() if "sboms" not in name} == {
            name for name in other.namelist() if "sboms" not in name
        }


@pytest.mark.nixl
@pytest.mark.timeout(280)
def test_the_wheel_runs_the_demo_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    succeed(python, "-m", "pip", "install", f"{wheel}[cli,numpy]", cwd=tmp_path)
    succeed(python, "-m", "pip", "install", "--no-deps", NIXL, cwd=tmp_path)
    demo = run(python.parent / "dynamo-nixl", "demo", cwd=tmp_path, environment=plain_environment())
    assert (demo.returncode, demo.stderr) == (0, "")
    assert demo.stdout


def test_the_development_requirements_cover_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    development = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    wanted = {re.split(r"\W", entry)[0] for entry in [*project["dependencies"], *extras["cli"], *extras["numpy"]]}
    assert wanted <= set(re.findall(r"^[\w-]+", development, re.MULTILINE))


def bindgen_environment(**variables: str) -> dict[str, str]:
    """What the build backend would add to an environment with these variables."""
    program = "import bindgen_env, json; print(json.dumps(bindgen_env.bindgen_environment()))"
    bare = {name: value for name, value in os.environ.items() if "CLANG" not in name}
    environment = {**bare, **variables, "PYTHONPATH": str(ROOT / "build_backend")}
    result = run(sys.executable, "-c", program, cwd=ROOT, environment=environment)
    added: dict[str, str] = json.loads(result.stdout)
    return added


def test_the_build_finds_libclang_and_the_headers_of_gcc() -> None:
    added = bindgen_environment()
    assert set(added) == {"LIBCLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS"}
    assert (Path(added["LIBCLANG_PATH"]) / "libclang.so").is_file()
    option, headers = shlex.split(added["BINDGEN_EXTRA_CLANG_ARGS"])
    assert option == "-isystem"
    assert (Path(headers) / "stddef.h").is_file()


def test_the_build_keeps_what_the_user_set() -> None:
    assert bindgen_environment(LIBCLANG_PATH="mine") == {}
    assert set(bindgen_environment(BINDGEN_EXTRA_CLANG_ARGS="-mine")) == {"LIBCLANG_PATH"}
