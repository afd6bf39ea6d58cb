"""`dynamo-nixl bench`, with few transfers: that it measures what it says, and says so when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from dynamo_nixl.bench.cases import make_cases
from dynamo_nixl.bench.implementations import NotInstalledError, find
from dynamo_nixl.bench.results import Results, shape_of

from support.workers import environment as clean

pytestmark = pytest.mark.nixl


def bench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dynamo_nixl", "bench", "--iterations", "8", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=clean(environment),
    )


def test_all_of_it_as_json(transport):
    """Each implementation, case and run has a row, with the times of both sides."""
    done = bench(
        "--size", "4K", "--size", "1M", "--cadence", "hot", "--cadence", "warm", "--json", "--runs", "2", **transport
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["ok"] is True
    found = [(row["run"], row["implementation"], row["size"], row["gap_us"]) for row in results["rows"]]
    expected = [
        (run, name, size, gap)
        for run in (1, 2)
        for name in ("ours", "raw", "memcpy")
        for size in (4 << 10, 1 << 20)
        for gap in (0.0, 300.0)
    ]
    assert found == expected
    for row in results["rows"]:
        assert 0 < row["reader"]["least"] <= row["reader"]["median"] <= row["reader"]["most"]
        if row["implementation"] == "ours":
            assert row["owner"]["median"] > 0
    assert set(results["versions"]) == {"ours", "raw", "memcpy"}


def test_tables(transport):
    done = bench("--size", "64K", "--cadence", "hot", **transport)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("dynamo_nixl", "memcpy", "owner awake", "64 KiB", "What each layer adds"):
        assert words in done.stdout


@pytest.mark.parametrize("options", [("--tasks", "8"), ("--blocks", "16")], ids=["tasks", "blocks"])
def test_several_at_a_time_and_scattered_ones(options):
    done = bench("--size", "64K", "--cadence", "hot", "--json", "--against", "raw", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["implementation"] for row in rows] == ["ours", "raw"]
    assert all(row["per_second"] > 0 for row in rows)


def test_results_in_a_file(tmp_path):
    output = tmp_path / "results.json"
    done = bench("--size", "4K", "--cadence", "hot", "--against", "memcpy", "--output", str(output))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(output.read_text())["rows"]


@pytest.mark.parametrize("option", ["--output", "--plot"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(option, tmp_path):
    done = bench(option, str(tmp_path / "nowhere" / "results.png"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such folder" in done.stderr


def test_names_may_be_separated_by_commas():
    done = bench("--size", "4K", "--cadence", "hot", "--json", "--against", "raw,memcpy")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["versions"]) == {"ours", "raw", "memcpy"}


def test_a_peer_may_say_a_lot(tmp_path):
    """More than a pipe holds, and then nothing that is expected."""
    program = tmp_path / "raw" / "bin" / "raw-ucx"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2\necho the end >&2\n")
    program.chmod(0o755)
    done = bench("--size", "4K", "--cadence", "hot", "--against", "ucx", DYNAMO_NIXL_PEERS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("the end")


def test_what_is_not_installed_is_left_out(tmp_path):
    done = bench("--size", "4K", "--cadence", "hot", "--against", "mooncake", DYNAMO_NIXL_PEERS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "make bench-peers" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "binary"), [("raw-rust", "raw-nixl"), ("raw-rust-plain", "raw-nixl"), ("ucx", "raw-ucx")]
)
def test_a_program_is_found_where_it_was_built(tmp_path, monkeypatch, name, binary):
    """The program is what is started, not an interpreter, and uses the NIXL that this package uses."""
    monkeypatch.setenv("DYNAMO_NIXL_PEERS", str(tmp_path))
    program = tmp_path / "raw" / "bin" / binary
    program.parent.mkdir(parents=True)
    with pytest.raises(NotInstalledError, match="make bench-peers"):
        find(name)
    program.touch(mode=0o644)
    with pytest.raises(NotInstalledError, match=name):
        find(name)
    program.chmod(0o755)
    found = find(name)
    assert found.command == (str(program),)
    assert found.environment["DYNAMO_NIXL_LIBRARY"].endswith("libnixl_capi.so")


def test_a_program_gets_roles_and_descriptors(tmp_path):
    """One that says nothing and ends is a failure, with the words that it wrote."""
    program = tmp_path / "raw" / "bin" / "raw-ucx"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "called as $1 $2" >&2\n')
    program.chmod(0o755)
    done = bench("--size", "4K", "--cadence", "hot", "--against", "ucx", DYNAMO_NIXL_PEERS=str(tmp_path))
    assert done.returncode == 1
    assert "called as owner ucx" in done.stderr
    assert "called as reader ucx" in done.stderr


def test_layers_follow_what_was_measured():
    """UCX and NIXL are two layers where both were measured in Rust, and else one."""
    [case] = make_cases([4096], ["hot"])
    results = Results(1)
    for name, time in (("memcpy", 1.0), ("raw", 30.0)):
        results.add(1, name, case, {"reader": {"median": time}, "owner": None})
    assert results.layers(shape_of(case)) == [("memcpy", 1.0), ("NIXL in Python, UCX", 29.0)]
    for name, time in (("ucx", 3.0), ("raw-rust", 5.0)):
        results.add(1, name, case, {"reader": {"median": time}, "owner": None})
    assert results.layers(shape_of(case)) == [("memcpy", 1.0), ("UCX", 2.0), ("NIXL", 2.0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "none"), "not a positive number"),
        (("--size", "100", "--blocks", "3"), "not 3 ranges"),
        (("--cadence", "tepid"), "tepid"),
        (("--against", "nobody"), "nobody"),
        (("--against", "raw,nobody"), "nobody"),
        (("--tasks", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_options(arguments, words):
    done = bench(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def test_a_failure_is_told_in_one_line_and_as_json():
    done = bench("--size", "4K", "--cadence", "hot", "--json", UCX_TLS="bogus")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert "dynamo-nixl bench failed" in done.stderr
