"""The files form a star, stay short, and do nothing at import."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import skvae

PACKAGE = Path(skvae.__file__).parent
FILES = {path.stem: path for path in PACKAGE.glob("*.py")}
LEAVES = {"likelihoods", "priors", "networks", "linear", "vae", "training", "columns", "rows"}


def imports(name):
    """Sibling modules that a file of the package imports, and the names it takes from each."""
    found = {}
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = [module] if module else [alias.name for alias in node.names]
            elif module == "skvae":
                parts = [alias.name for alias in node.names]
            elif module.startswith("skvae."):
                parts = [module.removeprefix("skvae.")]
            else:
                continue
            for part in parts:
                found.setdefault(part, set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "skvae":
                    found.setdefault(alias.name.removeprefix("skvae."), set())
    return found


def lines_of_code(source):
    """Lines that hold code: no blanks, comments or docstrings."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, first.end_lineno + 1))
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_lines_of_code_counts_code():
    source = '"""One.\n\nTwo."""\n\n# three\nx = (\n    1\n)\ndef f():\n    """4"""\n    return x'
    assert lines_of_code(source) == 5


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_no_siblings(leaf):
    assert set(imports(leaf)) <= {"gradients", "checks", "workspace", "world", "recording"}


def test_the_star():
    assert imports("gradients") == imports("checks") == imports("saving") == {}
    assert imports("world") == imports("recording") == imports("workspace") == {}
    assert set(imports("spread")) <= LEAVES | {"workspace"}
    assert set(imports("families")) == {"rows", "linear", "likelihoods"}
    assert set(imports("targets")) == {"training", "world"}
    assert set(imports("diagnostics")) == {"families", "targets", "workspace"}
    assert set(imports("settings")) == {"checks", "families", "networks", "priors"}
    assert set(imports("judging")) <= LEAVES | {"families", "settings", "targets", "workspace"}
    fitting = {"spread", "families", "judging", "targets", "settings", "workspace", "world"}
    assert set(imports("fitting")) <= LEAVES | fitting
    estimator = imports("estimator")
    wanted = {"fitting", "families", "columns", "networks", "rows", "targets", "vae", "likelihoods"}
    wanted |= {"checks", "settings", "priors", "diagnostics", "saving", "onnx", "workspace"}
    assert set(estimator) <= wanted
    assert estimator.get("networks", set()) <= {"Spread", "recast"}
    assert set(imports("imputer")) == {"estimator", "columns", "saving"}
    assert set(imports("outlier")) == {"estimator", "checks", "saving"}
    assert set(imports("latent")) == set(imports("drawing")) == {"checks"}
    assert set(imports("display")) == {"checks", "drawing", "latent"}
    assert set(imports("partitions")) == {"columns"}
    member = {"columns", "estimator", "fitting", "partitions", "rows", "settings", "world"}
    assert set(imports("member")) == member
    dask = {"estimator", "columns", "checks", "fitting", "member", "partitions", "settings"}
    assert set(imports("dask")) == dask
    assert set(imports("__init__")) == {"estimator", "imputer", "outlier"}


def test_every_file_has_its_place():
    others = "gradients checks workspace world recording spread families targets settings judging "
    others += "fitting estimator imputer latent diagnostics outlier drawing display saving onnx "
    others += "partitions member dask __init__"
    assert set(FILES) == LEAVES | set(others.split())


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_stay_short(name):
    assert lines_of_code(FILES[name].read_text(encoding="utf-8")) <= 700


def test_only_the_estimator_and_its_fit_know_scikit_learn():
    for leaf in sorted(
        LEAVES | {"families", "targets", "settings", "diagnostics", "judging", "fitting"}
    ):
        tree = ast.parse(FILES[leaf].read_text(encoding="utf-8"))
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not [module for module in modules if module.split(".")[0] == "sklearn"], leaf


SIDE_EFFECTS = """
import logging, os, random, warnings
import numpy as np
import sklearn, torch
# what the libraries themselves do when first used is not ours
import scipy.optimize, scipy.stats, sklearn.base, sklearn.utils.validation
try:
    import sklearn.callback
except ImportError:
    pass

def state():
    numpy_state = np.random.get_state()
    return {
        "torch generator": torch.random.get_rng_state().tolist(),
        "numpy generator": (numpy_state[1].tolist(), numpy_state[2:]),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "validation": torch.distributions.Distribution._validate_args,
        "filters": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "numpy errors": np.geterr(),
        "sklearn": sklearn.get_config(),
        "environment": dict(os.environ),
        "folder": sorted(os.listdir(".")),
    }

torch.set_num_threads(2)
before = state()
import skvae
after = state()
changed = [name for name in before if before[name] != after[name]]
skvae.VAETransformer(n_components=3)
changed += [name for name in before if before[name] != state()[name]]
assert not changed, changed
"""


def test_import_and_construction_have_no_side_effects(tmp_path):
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", path + SIDE_EFFECTS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
