"""Test that the diffs in CONTRIBUTING.md show existing code."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
SOURCES = [path.read_text() for path in sorted((ROOT / "deeplab_jax").rglob("*.py"))]


@pytest.mark.parametrize("diff", DIFFS)
def test_added_lines_are_in_the_package(diff):
    for line in diff.splitlines():
        if line.startswith("+"):
            assert any(line[1:] in source for source in SOURCES), line
