"""Compilation is nearly all of the time of these tests, so it leaves out XLA's expensive passes.

The tests of several devices and processes compile with them, as a user does.
"""

import pytest


@pytest.fixture(autouse=True, scope="module")
def all_compile_quickly(quick_compile: None) -> None:
    """Every module of this folder."""
