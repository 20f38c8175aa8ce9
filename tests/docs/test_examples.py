"""Test the files in examples/ as far as this needs no cluster. tests/cluster runs them."""

import shlex

import pytest
import yaml
from conftest import ROOT

from deeplab_jax.commands.flags import load_recipe

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_the_page_shows_the_script_that_the_cluster_test_submits():
    script = (ROOT / "examples" / "slurm.sbatch").read_text()
    assert f"```sh\n{script}```" in (ROOT / "docs" / "how-to" / "clusters.md").read_text()


def test_the_pods_find_each_other_and_train_a_valid_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == container["name"]
    mounts, volumes = ({each["name"] for each in names} for names in (container["volumeMounts"], pod["volumes"]))
    assert mounts == volumes
    exec_, python, program, *words = shlex.split(container["args"][0])
    flags = dict(word.removeprefix("--").split("=", 1) for word in words)
    fields = [f"{name.removeprefix('config.')}={value}" for name, value in flags.items() if name.startswith("config.")]
    assert (exec_, python, program) == ("exec", "python", "train.py")
    assert load_recipe(flags["config"], fields).data.root == "/shared/cityscapes"
    assert flags["coordinator"] == f"{name}-0.{pod['subdomain']}:12345"
    assert int(flags["num_processes"]) == spec["completions"] == spec["parallelism"]
    assert flags["process_id"] == "$JOB_COMPLETION_INDEX"
