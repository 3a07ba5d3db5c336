"""deploy/kubernetes, read against the code, the images and Kubernetes' own schemas: without a cluster."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.embedded import programs, up
from app.embedded.process import EmbeddedError
from app.main import create_app
from app.settings import Settings
from app.webhooks import secret as webhook_secret
from tests.test_containers import known_variables, last, read_stages
from worker.generation.server import create_app as create_generator

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.rglob("*.yaml"))
VERSION = "1.34"  # what a cloud offers today at least
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")
OURS = ("prepare", "api", "worker", "generator")


def read(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


RESOURCES = [resource for file in FILES if file.name != "kustomization.yaml" for resource in read(file)]
BY_NAME = {f"{resource['kind']}/{resource['metadata']['name']}": resource for resource in RESOURCES}
PODS = {
    resource["metadata"]["name"]: resource["spec"].get("jobTemplate", resource)["spec"]["template"]
    for resource in RESOURCES
    if resource["kind"] in WORKLOADS
}


def container(name: str) -> dict[str, Any]:
    [found] = PODS[name]["spec"]["containers"]
    return dict(found)


def stages() -> dict[str, list[tuple[str, str]]]:
    return dict(read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8")))


def environment(name: str) -> dict[str, Any]:
    """What a program's container is given: the shared settings, then its own."""
    shared = BY_NAME["ConfigMap/settings"]["data"] if "envFrom" in container(name) else {}
    return {
        **shared,
        **{entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(name)["env"]},
    }


@pytest.mark.parametrize("name", [name for name in BY_NAME if not name.startswith("ScaledObject")])
def test_kubernetes_knows_every_field(name: str) -> None:
    kubernetes_validate.validate(BY_NAME[name], VERSION, strict=True)


def test_the_kustomization_names_what_is_there_and_no_option() -> None:
    [kustomization] = read(FOLDER / "kustomization.yaml")
    here = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == here
    used = {container(name)["image"] for name in OURS}
    assert used == {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}


@pytest.mark.parametrize("name", [*OURS, "backup"])
def test_every_variable_is_a_setting_and_every_secret_a_reference(name: str) -> None:
    given = environment(name)
    assert set(given) - {"HF_TOKEN"} <= known_variables()
    secret = re.compile("PASSWORD|SECRET|KEY_ID|TOKEN|DATABASE_URL|REDIS_URL")
    assert all(isinstance(value, dict) for variable, value in given.items() if secret.search(variable))
    assert not [resource for resource in RESOURCES if resource["kind"] == "Secret"]


def test_the_shared_settings_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / "settings.yaml").read_text(encoding="utf-8")
    uncommented = yaml.safe_load(re.sub(r"(?m)^  # (FINETUNED_)", r"  \1", text))["data"]
    assert len(uncommented) == len(BY_NAME["ConfigMap/settings"]["data"]) + 2
    for name, value in uncommented.items():
        monkeypatch.setenv(name, value)
    assert set(uncommented) <= known_variables()
    settings = Settings()
    assert settings.store is not None
    assert settings.store_public_endpoint is not None


@pytest.mark.parametrize("name", sorted(PODS))
def test_nobody_is_root_or_may_become_it_or_write_to_the_image(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]


@pytest.mark.parametrize("name", [*OURS, "backup"])
def test_a_program_runs_as_the_images_user_and_writes_to_its_home(name: str) -> None:
    stage = stages()[container(name)["image"].partition(":")[0].removeprefix("finetuned-")]
    user = int(last(stage, "USER"))
    context = PODS[name]["spec"]["securityContext"]
    assert (context["runAsUser"], context["fsGroup"]) == (user, user)
    [home] = [
        pair.partition("=")[2]
        for pair in shlex.split(last(stage, "ENV"))
        if pair.startswith("FINETUNED_HOME=")
    ]
    writable = {mount["mountPath"] for mount in container(name)["volumeMounts"] if not mount.get("readOnly")}
    assert {home, "/tmp"} <= writable
    for mount in container(name)["volumeMounts"]:
        if mount.get("subPath"):
            assert mount["mountPath"] in (f"{home}/{Settings().key_file.name}", f"{home}/webhook_key")
            assert mount["readOnly"]


@pytest.mark.parametrize("name", sorted(PODS))
def test_an_image_has_a_version_and_a_container_its_limits(name: str) -> None:
    image, _, tag = container(name)["image"].partition(":")
    assert tag not in ("", "latest")
    if image.startswith("finetuned-"):
        assert tag == version("finetuned")
    resources = container(name)["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert "memory" in resources["limits"]


def test_each_program_is_started_as_finetuned_up_or_the_image_does() -> None:
    assert container("worker")["command"] == list(programs.celery(Settings())[2:])
    [generator] = [p for p in programs.programs(Settings(), 3, True) if p.name == "generator"]
    assert container("generator")["command"][1:] == list(generator.command[1:])
    assert container("prepare")["command"] == ["python", "-m", "app.cli", "prepare"]
    assert "command" not in container("api"), "the image's own is tested in test_containers.py"
    assert container("backup")["command"][-1].startswith('exec python -m app.cli backup "/backups/')


def probes(name: str) -> Iterator[dict[str, Any]]:
    yield from (value for key, value in container(name).items() if key.endswith("Probe"))


def test_probes_ask_where_it_is_answered(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://x@y/z", redis_url="redis://x")
    paths = {"api": set(create_app(settings).openapi()["paths"])}
    generator = create_generator(lambda _: Path(), 1, 1)
    paths["generator"] = {route.path for route in generator.routes}  # type: ignore[attr-defined]
    for name, known in paths.items():
        ports = {port["name"] for port in container(name)["ports"]}
        asked = [probe["httpGet"] for probe in probes(name)]
        assert len(asked) == 3
        assert {probe["path"] for probe in asked} <= known
        assert {probe["port"] for probe in asked} <= ports
    assert container("api")["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container("api")["livenessProbe"]["httpGet"]["path"] == "/healthz", (
        "no restart for an absent database"
    )
    words = container("worker")["readinessProbe"]["exec"]["command"]
    assert words[:2] == ["python", "-m"]
    assert hasattr(__import__(words[2], fromlist=["main"]), "main")
    assert "livenessProbe" not in container("worker")


def test_ports_and_names_fit_together() -> None:
    assert container("api")["ports"][0]["containerPort"] == int(last(stages()["api"], "EXPOSE"))
    listens = environment("generator")["GENERATOR_URL"].rpartition(":")[2]
    assert container("generator")["ports"][0]["containerPort"] == int(listens)
    generator = BY_NAME["StatefulSet/generator"]["spec"]
    headless = BY_NAME[f"Service/{generator['serviceName']}"]["spec"]
    assert headless["clusterIP"] == "None"
    asked = BY_NAME["ConfigMap/settings"]["data"]["GENERATOR_URL"].split(",")
    assert asked == [
        f"http://generator-{n}.{generator['serviceName']}:{listens}" for n in range(generator["replicas"])
    ]
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        if resource["kind"] == "Service":
            [pod] = [
                pod for pod in PODS.values() if spec["selector"].items() <= pod["metadata"]["labels"].items()
            ]
            open_ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= open_ports
        if resource["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            wanted = spec["selector"]["matchLabels"].items()
            assert [pod for pod in PODS.values() if wanted <= pod["metadata"]["labels"].items()]


def policies(name: str) -> list[dict[str, Any]]:
    labels = PODS[name]["metadata"]["labels"].items()
    found = [resource["spec"] for resource in RESOURCES if resource["kind"] == "NetworkPolicy"]
    return [spec for spec in found if spec["podSelector"].get("matchLabels", {}).items() <= labels]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    named = selector.get("matchLabels", {}).items() <= labels.items()
    return named and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


def reaches(source: str, target: str, port: int) -> bool:
    """Whether both sides let it through."""

    def passes(spec: dict[str, Any], way: str, side: str, other: str) -> bool:
        return any(
            port in [entry["port"] for entry in rule["ports"]]
            and any(
                "namespaceSelector" not in peer
                and selects(peer["podSelector"], PODS[other]["metadata"]["labels"])
                for peer in rule[side]
                if "podSelector" in peer
            )
            for rule in spec.get(way, [])
        )

    return any(passes(spec, "egress", "to", target) for spec in policies(source)) and any(
        passes(spec, "ingress", "from", source) for spec in policies(target)
    )


def test_who_reaches_whom() -> None:
    ways = {
        (source, target)
        for source in PODS
        for target, port in (("postgres", 5432), ("valkey", 6379), ("generator", 8100), ("api", 8000))
        if reaches(source, target, port)
    }
    assert ways == {
        ("api", "postgres"), ("api", "valkey"), ("api", "generator"),
        ("worker", "postgres"), ("worker", "valkey"), ("prepare", "postgres"), ("backup", "postgres"),
    }  # fmt: skip


def test_every_pod_is_cut_off_first_and_none_sees_the_machines_own_network() -> None:
    for name in PODS:
        assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies(name)
    blocks = [
        (name, peer["ipBlock"], rule["ports"])
        for name in PODS
        for spec in policies(name)
        for rule in spec.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert {name for name, _, _ in blocks} == {"api", "worker", "generator", "prepare", "backup"}
    for _, block, ports in blocks:
        assert "169.254.0.0/16" in block["except"], "where a cloud tells its machines' credentials"
        assert ports == [{"protocol": "TCP", "port": 443}]


def test_the_generator_has_no_key_but_one_to_read() -> None:
    given = environment("generator")
    assert not {"DATABASE_URL", "REDIS_URL"} & set(given)
    assert {value["secretKeyRef"]["name"] for value in given.values() if isinstance(value, dict)} == {
        "store-reader"
    }


def test_a_worker_may_save_and_send_before_it_is_killed() -> None:
    [worker] = [p for p in programs.programs(Settings(), 3, True) if p.name == "worker"]
    assert PODS["worker"]["spec"]["terminationGracePeriodSeconds"] > 2 * worker.grace
    assert container("worker")["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_scaler_asks_for_figures_that_there_are() -> None:
    scaled = BY_NAME["ScaledObject/worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in PODS
    source = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    figures = re.findall(r"finetuned_\w+", scaled["triggers"][0]["metadata"]["query"])
    assert figures
    for figure in figures:
        assert re.search(rf"\b{figure.removeprefix('finetuned_')}\b", source), figure


def test_the_ingress_leads_to_the_api_with_tls() -> None:
    spec = BY_NAME["Ingress/api"]["spec"]
    [rule] = spec["rules"]
    assert spec["tls"][0]["hosts"] == [rule["host"]]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = [port["name"] for port in BY_NAME[f"Service/{backend['name']}"]["spec"]["ports"]]
    assert backend["port"]["name"] in ports


def test_the_page_makes_keys_that_are_taken(database_url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (echo .* keys\.env)$", page, re.MULTILINE)
    assert len(lines) == 2
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=tmp_path,
        check=True,
        env={"PATH": path, "PYTHONPATH": str(ROOT)},
    )
    made = dict(line.split("=", 1) for line in (tmp_path / "keys.env").read_text().splitlines())
    for name, value in made.items():
        (tmp_path / name).write_text(value)
    settings = Settings(home=tmp_path, database_url=database_url)
    up.prepare(settings)
    assert len(webhook_secret.read_key(tmp_path)) == 32
    (tmp_path / "key").write_text("ft_0123456789abcdef")
    with pytest.raises(EmbeddedError, match="is no API key"):
        up.prepare(settings)


def test_every_secret_is_told_how_to_make() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    text = "".join(file.read_text(encoding="utf-8") for file in FILES)
    names = set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", text)) | set(
        re.findall(r"secretName: ([\w-]+),", text)
    )
    names = {name.rstrip(",") for name in names} - {"api-tls"}
    assert {"database", "store", "store-reader", "keys", "hub"} <= names
    for name in names:
        assert re.search(rf"create secret generic {name} ", page), name
