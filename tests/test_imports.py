import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "deeplab_jax"
# A room imports rooms that stand before it.
ROOMS = (
    *("errors", "files", "labels", "config"),
    *("runtime", "models", "losses"),
    "checkpoints",
    *("evaluation", "train"),
    *("weights", "api"),
    *("export", "predict", "plan", "pages"),
    "commands",
)
WITHOUT_JAX = ("errors", "files", "labels", "config", "data", "scenes")
# The data rooms stand aside: they know no JAX, and what they ask of the machine needs none.
ASIDE = ("errors", "files", "labels", "config", "runtime.machine")
MAY_IMPORT = {room: ROOMS[:place] for place, room in enumerate(ROOMS)} | {
    "data": ASIDE,
    "scenes": ASIDE,
    "commands": (*ROOMS, "data", "scenes"),
    "__init__": (),
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_what_the_layers_allow(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    modules = list(imported_modules(path))
    if room not in ("data", "commands"):
        assert not [m for m in modules if m.split(".")[0] in ("tensorflow", "tensorflow_datasets")]
    if room in WITHOUT_JAX:
        assert not [m for m in modules if m.split(".")[0] in ("jax", "flax", "optax")]
    for module in (m.removeprefix("deeplab_jax.") for m in modules if m.startswith("deeplab_jax.")):
        allowed = module.split(".")[0] == room or any(module == a or module.startswith(a + ".") for a in MAY_IMPORT[room])
        assert allowed, f"{path.relative_to(ROOT)} imports deeplab_jax.{module}"


def test_everything_but_the_data_works_without_tensorflow():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("data", "commands") and path.name != "__init__.py"
    ]
    code = "import sys; sys.modules['tensorflow'] = None\n" + "".join(f"import {module}\n" for module in modules)
    code += "import deeplab_jax as dl; assert all(getattr(dl, name) for name in dl.__all__)\n"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_config_needs_neither_jax_nor_tensorflow():
    code = "import sys; import deeplab_jax.config; assert not {'jax', 'tensorflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_package_needs_nothing_and_a_network_neither_tensorflow_nor_an_optimizer():
    code = "import sys; import deeplab_jax as dl; assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)\n"
    code += "dl.load, dl.Segmenter; assert not {'tensorflow', 'optax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        (["train.py", "--help"], {"jax", "tensorflow"}),
        (["eval.py", "--help"], {"jax", "tensorflow"}),
        (["train.py", QUICKSTART, "--config.optim.lr=fast"], {"jax", "tensorflow"}),
        (["eval.py", QUICKSTART, "--checkpoint=nowhere"], {"tensorflow"}),
    ],
)
def test_help_and_mistakes_wait_for_no_import(words, unneeded):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "absl.flags" in imported
    assert not imported & unneeded
