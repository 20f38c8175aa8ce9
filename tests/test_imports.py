import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "deeplab_jax"
BASE = {"errors", "files", "labels", "config", "validation"}
COMPUTE = {"models", "losses", "metrics", "photometric", "sharding"}
# docs of the layers: who may import whom. A module may always import its own package.
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "labels": {"errors"},
    "config": {"errors", "labels"},
    "validation": {"errors", "labels", "config"},
    "ade20k": {"labels"},
    "html_page": {"labels"},
    "label_files": BASE | {"ade20k"},
    "models": BASE | {"sharding"},
    "losses": BASE,
    "metrics": BASE,
    "photometric": set(),
    "flops": BASE | {"models"},
    "accelerators": set(),
    "sharding": BASE,
    "machine": set(),
    "data": BASE | {"label_files", "machine", "evaluation.pictures", "html_page"},
    "data_commands": BASE | {"data", "label_files"},
    "launchers": {"errors"},
    "compilation": {"machine"},
    "hosts": BASE | {"compilation", "launchers"},
    "train": BASE | COMPUTE | {"accelerators", "compilation", "flops", "hosts", "evaluation"},
    "evaluation": BASE | COMPUTE | {"compilation", "hosts"},
    "api": BASE | COMPUTE | {"compilation", "evaluation", "exported", "train.checkpoint"},
    "predict": BASE | {"api", "evaluation"},
    "exported": BASE,
    "export": BASE | COMPUTE | {"api", "evaluation", "exported", "train.checkpoint"},
    "demo": BASE | {"api", "evaluation.pictures", "html_page", "predict.inputs"},
    "report": BASE | {"evaluation", "html_page", "metrics", "train.checkpoint", "train.metrics_log", "train.receipt"},
    "use_commands": BASE | {"api", "compilation", "demo", "export", "predict", "report", "wiring"},
    "weights": BASE | {"models", "train.checkpoint"},
    "plan": BASE | COMPUTE | {"accelerators", "flops", "train"},
    "wiring": BASE | {"data", "train"},
    "cli": BASE
    | {"compilation", "data", "data_commands", "hosts", "label_files", "plan", "train", "use_commands", "weights", "wiring"},
    "__init__": set(),
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
    if room != "data":
        assert not [m for m in modules if m.split(".")[0] in ("tensorflow", "tensorflow_datasets")]
    if room in BASE | {"data"}:
        assert not [m for m in modules if m.split(".")[0] in ("jax", "flax", "optax")]
    for module in (m.removeprefix("deeplab_jax.") for m in modules if m.startswith("deeplab_jax.")):
        allowed = module.split(".")[0] == room or any(module == a or module.startswith(a + ".") for a in MAY_IMPORT[room])
        assert allowed, f"{path.relative_to(ROOT)} imports deeplab_jax.{module}"


def test_everything_but_the_data_works_without_tensorflow():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "data" not in path.relative_to(PACKAGE).parts and path.name not in ("__init__.py", "wiring.py")
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
