"""What the README shows runs as typed, and numbers that are written twice agree."""

import re
from pathlib import Path

import pytest

import skvae

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_there_is_code():
    assert len(BLOCKS) == 3


@pytest.mark.skipif(not (ROOT / "CITATION.cff").exists(), reason="not in the source package")
def test_the_citation_names_this_version():
    assert f"\nversion: {skvae.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
