"""The container files: Dockerfile, compose, and manifests of Kubernetes, checked without either."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from evomerge import errors

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
SECRETS = {  # as docker/README.md lets the user make them: Secret -> its keys
    "evomerge-storage": {"url"},
    "evomerge-postgres": {"password"},
    "evomerge-ray": {"auth_token"},
    "evomerge-dashboard": {"logins"},
}
ANSWERED_BY_A_REPEAT = {errors.Interrupted.exit_code}
ANSWERED_BY_AN_END = {
    errors.InvalidInput.exit_code,
    errors.OtherSpec.exit_code,
    errors.StoppedByFailures.exit_code,
}


def documents():
    return [
        document
        for path in sorted(KUBERNETES.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def values(node, key):
    """Every value of a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for each in node:
            yield from values(each, key)


def named(kind):
    return {each["metadata"]["name"] for each in documents() if each["kind"] == kind}


def templates():
    """Every pod template: of KubeRay's objects and of Kubernetes' own."""
    for document in documents():
        for key in ("template", "submitterPodTemplate"):
            yield from values(document, key)


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)


def test_the_dockerfile_has_no_lint_and_installs_as_the_makefile_does():
    run(BIN / "hadolint", DOCKER / "Dockerfile")
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert (
        text.count("RUN make install") == len(re.findall(r"^FROM source AS (cpu|cuda)$", text, flags=re.MULTILINE)) == 2
    )


def test_an_image_has_what_report_and_every_storage_need_and_may_be_built_with_other_extras():
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    before, *stages = text.split("\nFROM ")
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", before, flags=re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"postgres", "mysql", "redis", "s3", "report"} <= set(extras.split(",")) <= known.keys()
    for stage in stages[1:]:
        assert re.search(r'^ARG EXTRAS\nRUN make install EXTRAS="\$\{EXTRAS\}" ', stage, flags=re.MULTILINE)


def test_no_image_holds_the_secrets_beside_the_files():
    assert "docker/secrets" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_compose_file_follows_the_compose_schema(name):
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)


def test_a_command_for_gpus_gives_them_to_the_only_worker_of_the_machine():
    """A second worker container would offer the same cores and GPUs to Ray once more."""
    text = (DOCKER / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^.*TARGET=cuda.*docker compose.*$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        files = [yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) for path in re.findall(r"-f (\S+)", command)]
        workers = [each["services"]["ray-worker"] for each in files if "ray-worker" in each["services"]]
        devices = [device for each in values(workers, "devices") for device in each]
        assert [(device["count"], device["capabilities"]) for device in devices] == [("all", ["gpu"])]
        assert not [*values(workers, "replicas"), *values(workers, "scale")]


def test_every_variable_of_compose_is_in_its_page_and_the_page_has_no_other():
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    arguments = yaml.safe_load(text)["x-evomerge"]["build"]["args"]
    page = (DOCKER / "README.md").read_text(encoding="utf-8").partition("## Kubernetes")[0]
    assert set(re.findall(r"\b([A-Z]+)=", page)) == {*re.findall(r"\$\{([A-Z]+)", text), *arguments}


def test_compose_publishes_nothing_but_the_login_on_the_loopback_interface():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["login"]
    assert all(port.startswith("127.0.0.1:") for port in published["login"])
    assert services["dashboard"]["networks"] == ["inside"]


@pytest.mark.parametrize("script", ["controller.sh", "make-secrets.sh"])
def test_the_scripts_are_executable_and_parse(script):
    assert (DOCKER / script).stat().st_mode & 0o111
    run("sh", "-n", DOCKER / script)


@pytest.fixture
def stand_ins(tmp_path):
    """stand_ins(**name=script of a program) -> an environment in which these are run instead of the real ones."""

    def make(**programs):
        for name, script in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD": "head:6379", "OUT": str(tmp_path)}

    return make


def test_the_controller_joins_the_cluster_and_becomes_the_run_with_its_exit_code(stand_ins, tmp_path):
    environment = stand_ins(ray='echo "$@" > $OUT/joined', evomerge='echo "$$ $@" > $OUT/ran; exit 6')
    process = subprocess.Popen([DOCKER / "controller.sh", "run", "a b.yaml"], env=environment)
    assert process.wait() == 6
    assert (tmp_path / "joined").read_text().startswith("start --address=head:6379 --num-cpus=0 --num-gpus=0")
    assert (tmp_path / "ran").read_text() == f"{process.pid} run a b.yaml --ray head:6379\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("ray", ["touch $OUT/begun; exec sleep 600", "touch $OUT/begun; exit 1"])
def test_a_signal_while_the_controller_waits_for_the_cluster_ends_it_at_once_to_be_started_again(
    stand_ins, tmp_path, number, ray
):
    process = subprocess.Popen([DOCKER / "controller.sh", "run", "search.yaml"], env=stand_ins(ray=ray))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(9) == errors.Interrupted.exit_code  # a second before it would try again


def test_the_script_of_secrets_makes_those_that_compose_names(tmp_path):
    script = tmp_path / "make-secrets.sh"
    script.write_text((DOCKER / "make-secrets.sh").read_text())
    printed = run("sh", script).stdout
    wanted = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["secrets"]
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(wanted)
    assert made["postgres_password"] in made["storage_url"]
    assert not any(secret.strip() in printed for secret in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    with pytest.raises(subprocess.CalledProcessError):  # a second run would lose the database's password
        run("sh", script)


def test_a_manifest_follows_the_schema_of_its_kind():
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            assert run(BIN / "kubernetes-validate", "--strict", path).returncode == 0


def test_the_objects_of_kuberay_have_its_fields_and_pods_that_follow_their_schema(tmp_path):
    for number, document in enumerate(each for each in documents() if each["apiVersion"] == "ray.io/v1"):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(document))
        run(BIN / "check-jsonschema", "--schemafile", ROOT / "tests" / "assets" / "kuberay.schema.json", path)
    for number, template in enumerate(templates()):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": f"pod-{number}", **template.get("metadata", {})}
        path = tmp_path / f"pod-{number}.yaml"
        path.write_text(yaml.safe_dump(pod))
        run(BIN / "kubernetes-validate", "--strict", path)


def test_every_exit_code_of_the_controller_has_its_answer():
    (job,) = [each for each in documents() if each["kind"] == "Job"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = {
        code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }
    known = {error.exit_code for error in errors.EvomergeError.__subclasses__()} | {1}
    assert set(actions) == known
    assert {code for code, action in actions.items() if action == "Ignore"} == ANSWERED_BY_A_REPEAT
    assert {code for code, action in actions.items() if action == "FailJob"} == ANSWERED_BY_AN_END
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # without it Kubernetes refuses the policy


def test_what_a_manifest_refers_to_exists():
    manifests = documents()
    secrets = {*values(manifests, "secretName")} | {each["name"] for each in values(manifests, "secretKeyRef")}
    assert secrets == set(SECRETS)
    text = (DOCKER / "README.md").read_text(encoding="utf-8")
    for secret, keys in SECRETS.items():
        assert f"secret generic {secret} " in text
        assert all(f"{key}=" in text for key in keys)
    claims = {each["claimName"] for each in values(manifests, "persistentVolumeClaim")}
    assert claims <= named("PersistentVolumeClaim")
    maps = {each["name"] for each in values(manifests, "configMap")} - named("ConfigMap")
    assert maps == {"evomerge-spec"}
    assert "configmap evomerge-spec " in text
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert {*listed, "rayjob.yaml", "kustomization.yaml"} == {path.name for path in KUBERNETES.glob("*.yaml")}


def test_no_manifest_holds_a_secret_or_opens_a_port_to_the_outside():
    manifests = documents()
    assert "Secret" not in {each["kind"] for each in manifests}
    assert {*values(manifests, "serviceType")} == {"ClusterIP"}
    assert not [
        each for each in manifests if each["kind"] == "Service" and each["spec"].get("type", "ClusterIP") != "ClusterIP"
    ]
    assert {*values(manifests, "mode")} == {"token"}


def test_every_pod_may_be_reached_by_those_alone_who_need_it():
    """Every pod has a label that a network policy selects beside the one that forbids all."""
    policies = [each["spec"]["podSelector"] for each in documents() if each["kind"] == "NetworkPolicy"]
    assert {} in policies
    selected = [policy["matchLabels"] for policy in policies if policy]
    for template in templates():
        labels = template["metadata"]["labels"]
        assert any(wanted.items() <= labels.items() for wanted in selected), json.dumps(labels)


def test_no_pod_runs_as_root_or_may_become_it():
    for template in templates():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
