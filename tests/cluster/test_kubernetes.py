"""Check the manifest against the schema of Kubernetes' API, and the Containerfile with hadolint."""

import pathlib
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.cluster


def test_the_manifest_follows_the_schema_of_the_api():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the group cluster")
    resources = list(yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text()))
    for resource in resources:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    # The schema is strict: a field that does not exist is an error.
    resources[1]["spec"]["completion"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resources[1], kubernetes_validate.latest_version(), strict=True)


def test_the_containerfile_follows_the_rules_of_hadolint():
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("needs the group cluster")
    result = subprocess.run([hadolint, ROOT / "Containerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
