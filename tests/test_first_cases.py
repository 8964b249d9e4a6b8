"""The option `--first-cases`: which parameter sets of which tests stay."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import pytest

@pytest.mark.parametrize("b", "xy")
@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_many(a, b):
    pass

def test_one():
    pass

class TestOther:
    @pytest.mark.parametrize("a", ["[1]", "[2]", "[3]"])
    def test_many(self, a):
        pass
"""


@pytest.fixture
def collected(tmp_path):
    """Names of the tests that pytest collects with some options, under the conftest of this suite."""
    (tmp_path / "test_it.py").write_text(PROGRAM)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    exhaustive\n")

    def run(*options):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
        path = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run([*command, *options], cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
        return done, [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]

    return run


MANY = ["test_many[1-x]", "test_many[1-y]", "test_many[2-x]", "test_many[2-y]", "test_many[3-x]", "test_many[3-y]"]
OTHER = [f"TestOther::test_many[[{i}]]" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), [*MANY, "test_one", *OTHER]),
        (("--first-cases", "2"), [*MANY[:2], "test_one", *OTHER[:2]]),
        (("--first-cases", "3", "-m", "not slow"), [*MANY[:2], MANY[4], "test_one", *OTHER]),
        (("--first-cases", "1", "-k", "3"), [MANY[4], OTHER[2]]),
        (("--first-cases", "99"), [*MANY, "test_one", *OTHER]),
    ],
)
def test_the_first_cases_of_what_is_selected_stay(options, wanted, collected):
    done, names = collected(*options)
    assert names == wanted, done.stdout + done.stderr
    assert ("deselected" in done.stdout) == (len(wanted) < 10)


def test_less_than_one_is_refused(collected):
    done, _ = collected("--first-cases", "0")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "give at least 1" in done.stderr
