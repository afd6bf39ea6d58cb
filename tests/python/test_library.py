"""Where NIXL is looked for, which one is taken, and what is said when there is none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from importlib import metadata as installed
from pathlib import Path

import pytest
from dynamo_nixl import Connector, _library


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory that is all of the import path, a process without NIXL, and an environment without wishes."""
    directory = tmp_path / "site-packages"
    directory.mkdir()
    for name in ("DYNAMO_NIXL_LIBRARY", "UCX_MODULES", "LD_LIBRARY_PATH"):
        # Set first, so that what the tested code sets is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(_library, "_mapped_files", lambda: iter(()))
    monkeypatch.setattr(_library, "_load", None)
    monkeypatch.setattr(sys, "path", [str(directory)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return directory


@pytest.fixture
def loads(monkeypatch):
    """What the native side is asked to load; it fails for the loader's path, as if there were nothing."""
    paths = []

    def load_library(path):
        paths.append(path)
        if path == _library.LIBRARY:
            raise ImportError("cannot open shared object file")

    monkeypatch.setattr(_library, "_core", types.SimpleNamespace(load_library=load_library))
    return paths


def install(site, name, version, *, requires=(), with_library=True):
    """Make a directory look as if a wheel had been installed there."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    if not with_library:
        return None
    library = site / f".{name.replace('-', '_')}.mesonpy.libs" / "libnixl_capi.so"
    library.parent.mkdir()
    library.touch()
    return str(library)


class TestOrder:
    def test_nothing(self, site):
        search = _library.find({})
        assert search.candidates == []
        assert [miss.split(":")[0] for miss in search.misses] == [
            "DYNAMO_NIXL_LIBRARY",
            "beside NIXL libraries that are loaded already",
            "distribution nixl-cu13",
            "distribution nixl-cu12",
        ]
        assert _library.choose(search).path == "libnixl_capi.so"

    def test_the_newest_cuda_without_torch(self, site):
        install(site, "nixl-cu12", "1.5.1")
        thirteen = install(site, "nixl-cu13", "1.5.1")
        search = _library.find({})
        assert len(search.candidates) == 2
        assert _library.choose(search) == (thirteen, "distribution nixl-cu13", "1.5.1")

    @pytest.mark.parametrize(
        ("version", "requires", "major"),
        [
            ("2.13.0", ["filelock", "nvidia-cudnn-cu13==9.20.0.48; platform_system == 'Linux'"], 13),
            ("2.13.0", ["cuda-toolkit[cublas,cudart]==13.0.3; platform_system == 'Linux'"], 13),
            ("2.8.0", ["nvidia-cublas-cu12==12.8.4.1"], 12),
            ("2.8.0+cu128", [], 12),
            ("2.8.0+cpu", [], None),
        ],
    )
    def test_the_cuda_of_an_installed_torch(self, site, version, requires, major):
        install(site, "torch", version, requires=requires, with_library=False)
        libraries = {12: install(site, "nixl-cu12", "1.5.1"), 13: install(site, "nixl-cu13", "1.5.1")}
        assert _library.torch_cuda_major() == major
        assert _library.choose(_library.find({})).path == libraries[major or 13]
        assert "torch" not in sys.modules

    def test_the_cuda_of_an_imported_torch(self, site, monkeypatch):
        module = types.SimpleNamespace(version=types.SimpleNamespace(cuda="12.8"))
        monkeypatch.setitem(sys.modules, "torch", module)
        assert _library.torch_cuda_major() == 12

    def test_what_is_loaded_already_comes_before_what_is_installed(self, site, monkeypatch, tmp_path):
        install(site, "nixl-cu13", "1.5.1")
        twelve = Path(install(site, "nixl-cu12", "1.5.0"))
        mapped = [Path("/usr/lib/libc.so.6"), twelve.with_name("libnixl_common.so"), twelve.with_name("libnixl.so")]
        monkeypatch.setattr(_library, "_mapped_files", lambda: iter(mapped))
        search = _library.find({})
        chosen = _library.choose(search)
        assert (chosen.path, chosen.version) == (str(twelve), "1.5.0")
        assert [each.origin for each in search.candidates[1:]] == ["distribution nixl-cu13"]

    def test_loaded_libraries_without_the_c_one(self, site, monkeypatch, tmp_path):
        thirteen = install(site, "nixl-cu13", "1.5.1")
        monkeypatch.setattr(_library, "_mapped_files", lambda: iter([tmp_path / "libnixl-1234abcd.so"]))
        search = _library.find({})
        assert _library.choose(search).path == thirteen
        assert f"no libnixl_capi.so in {tmp_path}" in "\n".join(search.misses)

    def test_what_the_user_names_comes_first(self, site, tmp_path):
        install(site, "nixl-cu13", "1.5.1")
        own = tmp_path / "libnixl_capi.so"
        own.touch()
        for named in (tmp_path, own):
            search = _library.find({"DYNAMO_NIXL_LIBRARY": str(named)})
            assert _library.choose(search) == (str(own), "named by DYNAMO_NIXL_LIBRARY", None)

    def test_what_the_user_names_must_exist(self, site, tmp_path):
        install(site, "nixl-cu13", "1.5.1")
        with pytest.raises(ImportError, match=r"DYNAMO_NIXL_LIBRARY names no library.*nowhere"):
            _library.find({"DYNAMO_NIXL_LIBRARY": str(tmp_path / "nowhere")})

    def test_a_wheel_without_its_library(self, site):
        install(site, "nixl-cu13", "1.5.1", with_library=False)
        search = _library.find({})
        assert search.candidates == []
        assert "nixl-cu13: 1.5.1 is installed, but there is no" in "\n".join(search.misses)

    def test_this_process_is_read(self):
        assert any(path.name.startswith("_core.") for path in _library._mapped_files())


class TestVersions:
    @pytest.mark.parametrize("version", ["1.4.1", "1.5.0", "1.5.1", "1.5.9rc1", "1.5.1.post1"])
    def test_in_range(self, site, version):
        path = install(site, "nixl-cu12", version)
        assert _library.choose(_library.find({})).path == path

    @pytest.mark.parametrize("version", ["0.9.0", "1.4.0", "1.4", "1.6.0", "1.6.0rc1", "2.0"])
    def test_out_of_range(self, site, version):
        path = install(site, "nixl-cu12", version)
        with pytest.raises(ImportError) as error:
            _library.choose(_library.find({}))
        for part in (version, path, "1.4.1 <= version < 1.6", "pip install 'nixl-cu12>=1.4.1,<1.6'"):
            assert part in str(error.value)

    def test_one_in_range_is_preferred(self, site):
        install(site, "nixl-cu13", "1.3.0")
        twelve = install(site, "nixl-cu12", "1.5.1")
        assert _library.choose(_library.find({})).path == twelve

    def test_what_the_user_names_is_not_passed_over(self, site):
        old = install(site, "nixl-cu12", "1.3.0")
        install(site, "nixl-cu13", "1.5.1")
        with pytest.raises(ImportError, match=r"1\.3\.0"):
            _library.choose(_library.find({"DYNAMO_NIXL_LIBRARY": old}))


class TestLoading:
    def test_nothing_found(self, site, loads):
        install(site, "torch", "2.8.0+cu128", with_library=False)
        with pytest.raises(ImportError) as error:
            _library.ensure_loaded()
        text = str(error.value)
        for part in (
            "DYNAMO_NIXL_LIBRARY: not set",
            "loaded already",
            "distribution nixl-cu13: not installed",
            "distribution nixl-cu12: not installed",
            "the loader's search path: cannot open shared object file",
            "pip install 'nixl-cu12>=1.4.1,<1.6'",
        ):
            assert part in text
        assert "cu13]" not in text
        assert not _library.is_loaded()

    def test_a_later_call_looks_again(self, site, loads):
        with pytest.raises(ImportError):
            _library.ensure_loaded()
        path = install(site, "nixl-cu13", "1.5.1")
        _library.ensure_loaded()
        _library.ensure_loaded()
        assert loads == ["libnixl_capi.so", path]
        assert _library.loaded().candidate.path == path

    def test_a_library_that_cannot_be_loaded(self, site, monkeypatch):
        path = install(site, "nixl-cu13", "1.5.1")

        def load_library(_):
            raise ImportError("no such function: nixl_capi_create_agent")

        monkeypatch.setattr(_library, "_core", types.SimpleNamespace(load_library=load_library))
        with pytest.raises(ImportError, match="no such function") as error:
            _library.ensure_loaded()
        assert path in str(error.value)

    async def test_a_connector_without_nixl(self, site, loads):
        connector = Connector()
        for _ in range(2):
            with pytest.raises(ImportError, match="NIXL was not found"):
                await connector._create_connection()
        assert connector._shared_connection is None


class TestEfa:
    @pytest.fixture
    def libefa(self, site, tmp_path, monkeypatch):
        path = tmp_path / "libefa.so.1"
        path.touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", f":/nowhere:{tmp_path}")
        install(site, "nixl-cu13", "1.5.1")
        return str(path)

    def test_it_is_kept_out(self, libefa, loads):
        _library.ensure_loaded()
        assert os.environ["UCX_MODULES"] == "^efa"
        assert _library.loaded().libefa == libefa

    def test_the_user_decides(self, libefa, loads, monkeypatch):
        monkeypatch.setenv("UCX_MODULES", "all")
        _library.ensure_loaded()
        assert os.environ["UCX_MODULES"] == "all"

    def test_ucx_may_be_there_before(self, libefa, loads, monkeypatch):
        monkeypatch.setattr(
            _library, "_mapped_files", lambda: iter([Path("/x/nixl_cu13.libs/libucs-14c218c5.so.0.0.0")])
        )
        _library.ensure_loaded()
        assert _library.loaded().libucs == "/x/nixl_cu13.libs/libucs-14c218c5.so.0.0.0"


PROGRAM = """
import asyncio, json, os
from dynamo_nixl import Connector, _library

async def main():
    connector = Connector("worker")
    connections = await asyncio.gather(*(connector._create_connection() for _ in range(5)))
    assert len(set(connections)) == 1
    return connector

connector = asyncio.run(main())
load = _library.loaded()
print(json.dumps([*load.candidate, load.libucs, repr(connector._shared_connection)]))
"""


def run(program, **environment):
    """A fresh process that must end cleanly, with its connector alive and nothing on stderr."""
    environment = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert result.stderr == ""
    assert result.returncode == 0
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.nixl
class TestRealNixl:
    def test_the_installed_wheel(self):
        path, origin, version, libucs, connection = run(PROGRAM)
        wheel = next(name for name in ("nixl-cu13", "nixl-cu12") if f"distribution {name}" == origin)
        assert version == installed.version(wheel)
        assert path.endswith(f".{wheel.replace('-', '_')}.mesonpy.libs/libnixl_capi.so")
        assert libucs is None
        assert connection == "Connection(is_initialized=True, name='worker-1')"

    def test_beside_nixl_s_own_package(self):
        # Its compiled module is all that is loaded of it: the rest needs torch.
        program = (
            "import glob, importlib.machinery, importlib.util, os, sys\n"
            "origin = next(p for d in sys.path for p in glob.glob(os.path.join(d, 'nixl_cu*', '_bindings.*.so')))\n"
            "loader = importlib.machinery.ExtensionFileLoader('_bindings', origin)\n"
            "spec = importlib.util.spec_from_loader('_bindings', loader)\n"
            "module = importlib.util.module_from_spec(spec)\n" + PROGRAM
        )
        path, origin, version, _, _ = run(program)
        assert origin == "beside NIXL libraries that are loaded already"
        assert Path(path).is_file()
        assert version

    def test_named_by_the_user(self):
        path, *_ = run(PROGRAM)
        named, origin, *_ = run(PROGRAM, DYNAMO_NIXL_LIBRARY=str(Path(path).parent))
        assert (named, origin) == (path, "named by DYNAMO_NIXL_LIBRARY")


PACKAGES = ("ibverbs-providers", "libibverbs1", "libnl-3-200", "libnl-route-3-200")


@pytest.fixture
def systems_libefa(tmp_path):
    """Debian's libefa and what it needs, unpacked: folders for `LD_LIBRARY_PATH`."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no Debian packages")
    download = subprocess.run(
        ["apt-get", "download", *PACKAGES], cwd=tmp_path, capture_output=True, timeout=300, check=False
    )
    if download.returncode != 0:
        pytest.skip("no Debian packages")
    for package in tmp_path.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, tmp_path / "root"], check=True, timeout=60)
    folders = {str(library.parent) for library in (tmp_path / "root").rglob("lib*.so.*")}
    assert any(Path(folder, "libefa.so.1").exists() for folder in folders)
    return os.pathsep.join(sorted(folders))


@pytest.mark.long
@pytest.mark.nixl
def test_an_exit_with_the_systems_libefa(systems_libefa):
    inherited = {name: value for name, value in os.environ.items() if name != "UCX_MODULES"}
    environment = {**inherited, "LD_LIBRARY_PATH": systems_libefa}
    program = [sys.executable, "-c", PROGRAM]
    # The control: let in, UCX's EFA module makes the process crash when it exits.
    let_in = subprocess.run(
        program, capture_output=True, timeout=60, check=False, env={**environment, "UCX_MODULES": "all"}
    )
    assert let_in.returncode == -signal.SIGSEGV
    ours = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (ours.returncode, ours.stderr) == (0, "")
