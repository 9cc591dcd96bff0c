"""The examples in docstrings are true."""

from __future__ import annotations

import doctest

import hvcompress


def test_package_docstring():
    results = doctest.testmod(hvcompress)
    assert results.attempted >= 5 and results.failed == 0
