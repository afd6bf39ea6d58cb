"""The plugin that fails unlisted skips."""

import re

import pytest

LIST = """
[[python]]
test = "test_*"
reason = "no CUDA device*"
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("CI", raising=False)
    # The other plugins would be loaded anew for every session: seconds.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makefile(".toml", skips=LIST)
    pytester.makeini(
        """
        [pytest]
        skip_list = skips.toml
        markers =
            nixl: as in this repository
            interop: as in this repository
        """
    )
    pytester.makeconftest("pytest_plugins = ['plugins.skips']")
    return pytester


def run(project: pytest.Pytester, source: str) -> pytest.RunResult:
    project.makepyfile(f"import pytest\n{source}")
    return project.runpytest_inprocess("-rs")


def test_a_listed_skip_is_a_skip(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(): pytest.skip('no CUDA device: driver missing')")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["SKIPPED*no CUDA device: driver missing"])


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("def test_it(): pytest.skip('too lazy')", "failed"),
        ("@pytest.mark.skip(reason='too lazy')\ndef test_it(): pass", "errors"),
        ("@pytest.mark.skipif(True, reason='too lazy')\ndef test_it(): pass", "errors"),
        ("@pytest.fixture\ndef gift(): pytest.skip('too lazy')\ndef test_it(gift): pass", "errors"),
        (
            "import unittest\nclass TestIt(unittest.TestCase):\n    def test_it(self): self.skipTest('too lazy')",
            "failed",
        ),
        ("pytest.skip('too lazy', allow_module_level=True)", "errors"),
    ],
    ids=["call", "mark", "condition", "fixture", "unittest", "module"],
)
def test_an_unlisted_skip_fails(project: pytest.Pytester, source: str, outcome: str) -> None:
    result = run(project, source)
    result.assert_outcomes(**{outcome: 1})
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*skipped for a reason that skips.toml does not list: too lazy"])


@pytest.mark.parametrize("mark", ["nixl", "interop"])
@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("@pytest.mark.{mark}\ndef test_it(): pytest.skip('no CUDA device')", "failed"),
        ("pytestmark = pytest.mark.{mark}\npytest.skip('no CUDA device', allow_module_level=True)", "errors"),
    ],
    ids=["test", "module"],
)
def test_what_needs_nixl_may_not_skip_in_ci(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str, outcome: str, mark: str
) -> None:
    source = source.format(mark=mark)
    run(project, source).assert_outcomes(skipped=1)
    monkeypatch.setenv("CI", "true")
    result = run(project, source)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([f"*is marked {mark} and may not skip when CI=true; it skipped: no CUDA device"])


def test_an_expected_failure_is_no_skip(project: pytest.Pytester) -> None:
    run(project, "@pytest.mark.xfail\ndef test_it(): assert False").assert_outcomes(xfailed=1)


def test_only_the_star_is_special(project: pytest.Pytester) -> None:
    project.makefile(".toml", skips='[[python]]\ntest = "*::test_it[1]"\nreason = "why?"\n')
    source = "@pytest.mark.parametrize('n', [1, 2])\ndef test_it(n): pytest.skip('why?')"
    run(project, source).assert_outcomes(skipped=1, failed=1)


def test_the_closing_line_comes_last(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(): pytest.skip('too lazy')")
    assert re.fullmatch(r"=+ 1 failed in .* =+", result.outlines[-1])
