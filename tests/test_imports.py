import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "deeplab_jax"
# The packages from lowest to highest. Each one is allowed to import only those before it.
LAYERS = (
    *("errors", "buckets", "files", "labels", "config"),
    *("runtime", "models", "losses"),
    "checkpoints",
    *("evaluation", "training"),
    *("weights", "api"),
    *("export", "predict", "plan", "pages"),
    "commands",
)
WITHOUT_JAX = ("errors", "buckets", "files", "labels", "config", "data", "scenes")
# The data packages must not use JAX. They are allowed to use the runtime modules that do not need JAX.
DATA_MAY_IMPORT = (
    *("errors", "buckets", "files", "labels", "config"),
    *("runtime.machine", "runtime.parallel", "runtime.canvases", "runtime.work_shard"),
)
MAY_IMPORT = {layer: LAYERS[:position] for position, layer in enumerate(LAYERS)} | {
    "data": DATA_MAY_IMPORT,
    "scenes": DATA_MAY_IMPORT,
    # Predictions read image files like training does, but without TensorFlow.
    "predict": (*LAYERS[: LAYERS.index("predict")], "data.decode", "data.folders"),
    "commands": (*LAYERS, "data", "scenes"),
    "__init__": ("buckets",),
    "__main__": ("commands",),
}


def find_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_lower_layers(path):
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    modules = list(find_imports(path))
    if layer not in ("data", "commands"):
        assert not [m for m in modules if m.split(".")[0] in ("tensorflow", "tensorflow_datasets")]
    if layer in WITHOUT_JAX:
        assert not [m for m in modules if m.split(".")[0] in ("jax", "flax", "optax")]
    for module in (m.removeprefix("deeplab_jax.") for m in modules if m.startswith("deeplab_jax.")):
        allowed = module.split(".")[0] == layer or any(module == a or module.startswith(a + ".") for a in MAY_IMPORT[layer])
        assert allowed, f"{path.relative_to(ROOT)} imports deeplab_jax.{module}"


@pytest.mark.slow
def test_everything_but_the_data_packages_works_without_tensorflow():
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


def test_importing_the_package_is_light_and_inference_needs_neither_tensorflow_nor_optax():
    code = "import sys; import deeplab_jax as dl; assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)\n"
    code += "dl.load, dl.Segmenter; assert not {'tensorflow', 'optax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["train.py", "--help"], {"jax", "tensorflow"}),
        (["eval.py", "--help"], {"jax", "tensorflow"}),
        (["train.py", QUICKSTART, "--config.optim.lr=fast"], {"jax", "tensorflow"}),
        (["eval.py", QUICKSTART, "--checkpoint=nowhere"], {"tensorflow"}),
    ],
)
def test_help_and_errors_do_not_wait_for_slow_imports(arguments, unneeded):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "absl.flags" in imported
    assert not imported & unneeded
