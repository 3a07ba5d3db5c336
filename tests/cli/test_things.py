"""Files, models and keys; curves; text that a terminal must not obey; the doctor where something is wrong."""

import json
import os
import re
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import redis
from openai import OpenAI

from app.database import WorkerDatabase
from app.terminal import client as terminal_client
from app.terminal import plot, screen, upload
from app.terminal.checkup import installation
from app.terminal.checkup.verdict import Verdict, heard
from tests.app.conftest import Api
from tests.cli.conftest import Run
from tests.stand_ins.reporter import Reporter


def test_files_are_sent_listed_and_deleted(run: Run, rows: Path, tmp_path: Path) -> None:
    sent = run("files", "upload", str(rows))
    assert re.fullmatch(r"file-\w+: rows.jsonl, 2 rows of shape text\.\n", sent.out), sent
    file_id = sent.out.partition(":")[0]
    assert json.loads(run("files", "upload", str(rows), "--json").out)["id"] == file_id
    assert "rows.jsonl" in run("files", "list").out
    assert run("files", "get", file_id, "--out", str(tmp_path / "got")).code == 0
    assert (tmp_path / "got").read_bytes() == rows.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert run("files", "get", file_id, "--out", str(tmp_path / "none/got")).code == 1
    assert json.loads(run("files", "list", "--json").out)["data"][0]["id"] == file_id
    table = tmp_path / "reviews.csv"
    table.write_text("question,answer\nWhy?,Because.\n")
    named = ("--columns", "prompt=question", "--columns", "completion=answer")
    made = json.loads(run("files", "upload", str(table), *named, "--json").out)
    assert (made["shape"], made["columns"]) == (
        "prompt_completion",
        {"prompt": "question", "completion": "answer"},
    )
    assert run("files", "upload", str(table)).code == 1, "the same bytes with other columns are another file"
    assert run("files", "delete", file_id[:14]).out == f"{file_id} is deleted.\n"
    assert run("files", "delete", file_id).code == 1
    missing = run("files", "upload", str(tmp_path / "none"))
    assert (missing.code, "No such file" in missing.err) == (1, True)
    assert run("files", "check", "none.jsonl").code == 2


def test_models_are_listed_and_only_ones_own_deleted(run: Run, api: Api, client: OpenAI, rows: Path) -> None:
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    database = WorkerDatabase(api.settings)
    reporter = Reporter(api.settings, database, job.id)
    reporter.prepare()
    reporter.succeed()
    database.close()
    assert reporter.model_name in run("models", "list").out
    assert [row["id"] for row in json.loads(run("models", "list", "--mine", "--json").out)["data"]] == [
        reporter.model_name
    ]
    assert run("models", "share", job.id, "ann", "bob").out == "Permitted to ann, bob.\n"
    assert [line.split()[0] for line in run("models", "permissions", job.id).out.splitlines()] == [
        "owner", "bob", "ann",
    ]  # fmt: skip
    assert run("models", "unshare", reporter.model_name, "ann").code == 0
    [left] = json.loads(run("models", "permissions", job.id, "--json").out)["data"]
    assert left["project_id"] == "bob"
    assert run("models", "unshare", reporter.model_name, "ann").code == 1
    assert run("models", "delete", "tiny-gpt2").code == 1
    assert run("models", "delete", job.id).out == f"{reporter.model_name} is deleted.\n"
    assert json.loads(run("models", "list", "--mine", "--json").out)["data"] == []


def test_a_key_is_made_used_and_revoked_and_shown_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("keys", "create", "laptop", "--owner", "ann", "--scope", "jobs:read", "--expires-in", "3")
    key = tmp_path / "key"
    key.write_text(made.out)
    assert re.fullmatch(r"ft_\w{8}_.*\n", made.out)
    key_id = made.out.split("_")[1]
    assert run("jobs", "--key-file", str(key)).code == 0
    short = run("files", "list", "--key-file", str(key))
    assert (short.code, "files:read" in short.err) == (1, True)
    listed = run("keys", "list")
    assert key_id in listed.out
    assert made.out.strip() not in listed.out
    assert run("keys", "revoke", "last").code == 2
    assert run("keys", "revoke", key_id).code == 0
    assert run("jobs", "--key-file", str(key)).code == 1
    assert key_id not in run("keys", "list").out
    assert key_id in run("keys", "list", "--all").out
    assert "admin" in run("keys", "create", "other", "--key-file", str(_stranger(run, tmp_path))).err


def test_a_key_is_changed_and_everybody_sees_their_own(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(run("keys", "create", "ci", "--owner", "ann", "--running-jobs", "2").out)
    key_id = key.read_text().split("_")[1]
    assert run("keys", "change", key_id).code == 2, "nothing was said"
    assert run("keys", "change", key_id, "--name", "nightly", "--storage-bytes", "5000").code == 0
    mine = run("keys", "show", "--key-file", str(key)).out
    for part in (key_id, "nightly", "ann", "running jobs", "5,000"):
        assert part in mine, part
    limits = json.loads(run("keys", "show", key_id, "--json").out)["limits"]
    assert limits == {"requests_per_minute": None, "running_jobs": 2, "storage_bytes": 5000}
    assert run("keys", "change", key_id, "--scope", "jobs:read").code == 0
    assert run("files", "list", "--key-file", str(key)).code == 1


def test_admins_read_the_audit_log_and_what_everybody_keeps(run: Run, rows: Path) -> None:
    file_id = json.loads(run("files", "upload", str(rows), "--json").out)["id"]
    run("files", "delete", file_id)
    told = run("audit", "--action", "delete_file").out.splitlines()
    assert file_id in told[1]
    assert all("delete_file" in line for line in told[1:])
    page = json.loads(run("audit", "--limit", "1", "--json").out)
    assert (len(page["data"]), page["has_more"]) == (1, True)
    assert json.loads(run("audit", "--owner", "nobody", "--json").out)["data"] == []
    run("files", "upload", str(rows), "--columns", "text=text")
    said = run("storage").out
    used = json.loads(run("storage", "--json").out)["files"]
    assert f"{used['bytes']} B in {used['count']}" in said
    assert "free of" in said


def test_a_large_file_goes_in_parts_and_a_part_that_is_lost_is_sent_again(
    run: Run, client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large is what is larger than a few bytes here. The line that breaks is made up: after a part has
    arrived its answer is lost once."""
    monkeypatch.setattr(upload, "LARGE", 100)
    monkeypatch.setattr(upload, "PART", 64)
    monkeypatch.setattr(terminal_client, "FIRST_WAIT", 0.01)
    said: list[str] = []
    send = httpx2.Client.request

    def break_once(self: httpx2.Client, method: str, url: str, **given: Any) -> httpx2.Response:
        answer = send(self, method, url, **given)
        said.append(f"{url.rpartition('/')[2]} {answer.status_code}")
        if said == ["files 200", "uploads 200", "parts 200"]:
            raise httpx2.ReadError("the line broke")
        return answer

    monkeypatch.setattr(httpx2.Client, "request", break_once)
    large = tmp_path / "large.jsonl"
    large.write_text("".join(json.dumps({"text": f"Row {n} of them."}) + "\n" for n in range(20)))
    made = json.loads(run("files", "upload", str(large), "--json").out)
    assert said.count("parts 200") == 1 + -(-large.stat().st_size // 64)
    assert (made["filename"], made["rows"], made["shape"]) == ("large.jsonl", 20, "text")
    assert client.files.content(made["id"]).read() == large.read_bytes()
    large.write_text('{"text": 7}\n' * 20)
    broken = run("files", "upload", str(large))
    assert (broken.code, "large.jsonl: line 1" in broken.err) == (1, True)
    monkeypatch.setattr(upload, "LONGEST_PART", 0)  # nothing is read: what is sent is not all of it
    large.write_text('{"text": "more"}\n' * 20)
    assert run("files", "upload", str(large)).code == 1
    assert said[-2:] == ["complete 400", "cancel 200"], "its bytes would count for an hour"


def _stranger(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "stranger"
    path.write_text(run("keys", "create", "guest", "--owner", "guest").out)
    return path


def test_a_webhook_is_made_listed_changed_and_deleted(run: Run, rows: Path) -> None:
    made = run("webhooks", "create", "https://example.com/hook", "--event", "fine_tuning.job.failed")
    assert re.fullmatch(r"whsec_\S+\n", made.out), made
    [row] = json.loads(run("webhooks", "list", "--json").out)["data"]
    assert row["event_types"] == ["fine_tuning.job.failed"]
    assert "example.com/hook" in run("webhooks", "list").out
    changed = run("webhooks", "change", "last", "--name", "new", "--event", "fine_tuning.job.succeeded")
    assert changed.code == 0, changed.err
    assert run("webhooks", "change", "last").code == 2
    [row] = json.loads(run("webhooks", "list", "--json").out)["data"]
    assert (row["name"], row["event_types"]) == ("new", ["fine_tuning.job.succeeded"])
    again = run("webhooks", "rotate", "last", "--keep-old")
    assert re.fullmatch(r"whsec_\S+\n", again.out)
    assert again.out != made.out
    assert run("webhooks", "deliveries", "last").err == "Nothing has been sent to it.\n"
    assert run("webhooks", "redeliver", "last", "last").code == 1
    run("webhooks", "change", "last", "--event", "fine_tuning.job.cancelled")
    job_id = json.loads(run("submit", str(rows), "--json").out)["id"]
    run("cancel", job_id)
    told = run("webhooks", "deliveries", "last", "--status", "pending").out
    assert all(part in told for part in (job_id, "cancelled", "pending")), told
    sent = json.loads(run("webhooks", "redeliver", "last", "last", "--json").out)
    assert sent["event"]["data"]["id"] == job_id
    assert json.loads(run("webhooks", "deliveries", "last", "--status", "failed", "--json").out)["data"] == []
    assert run("webhooks", "delete", "last").out == f"{row['id']} is deleted.\n"
    refused = run("webhooks", "create", "http://127.0.0.1/")
    assert (refused.code, refused.err.startswith("finetuned: url: ")) == (1, True)


def test_what_others_wrote_does_not_steer_the_terminal(run: Run, rows: Path, tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b]0;owned\x07\u202egpj.jsonl"
    evil.write_bytes(rows.read_bytes())
    assert run("files", "upload", str(evil)).code == 0
    said = run("files", "list").out
    assert "owned" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)
    assert screen.plain("a\tb\nc\x9b1m\r") == "a\tb\nc\ufffd1m\ufffd"
    screen.say("[red]x[/red] :smile:")


def test_a_curve_goes_from_corner_to_corner() -> None:
    rising = plot.Curve("up", [(0, 0), (5, 5), (10, 10)])
    lines = [line.plain for line in plot.draw([rising], 40, 10)]
    assert len(lines) == 10
    dots = [line.split("│")[1] for line in lines if "│" in line]
    assert dots[0].rstrip()[-1] > "\u2800"
    assert len(dots[0].rstrip()) == len(dots[0])
    assert dots[-1][0] > "\u2800"
    assert dots[-1].rstrip() != dots[-1]
    assert lines[0].strip().startswith("10")
    assert (lines[-2].split("└")[1].split()[0], lines[-2].split()[-1]) == ("0", "10")
    assert "up" in lines[-1]
    letters = [
        line.plain
        for line in plot.draw([rising, plot.Curve("flat", [(0, 0), (10, 0)])], 40, 10, colours=False)
    ]
    assert any("a" in line for line in letters[:-2])
    assert "b" in letters[-3]
    assert "a = up" in letters[-1]


def test_a_curve_without_numbers_or_room_is_not_drawn() -> None:
    assert plot.draw([], 80, 20) == []
    assert plot.draw([plot.Curve("none", [(1, float("nan"))])], 80, 20) == []
    assert plot.draw([plot.Curve("one", [(1, 2)])], 80, 2) == []
    assert len(plot.draw([plot.Curve("one", [(1, 2)])], 80, 10)) == 10
    assert len(plot.draw([plot.Curve("huge", [(0, -1e300), (1, 1e300)])], 80, 10)) == 10


def test_sizes_and_spans_are_short() -> None:
    assert [screen.size(n) for n in (None, 0, 999, 1500, 123_456_789, 10**13)] == [
        "-", "0 B", "999 B", "1.5 kB", "123 MB", "10.0 TB",
    ]  # fmt: skip
    assert [screen.span(n) for n in (None, -3, 59.4, 61, 3660, 90_000)] == [
        "-", "0 s", "59 s", "1 min 01 s", "1 h 01 min", "1 d 1 h",
    ]  # fmt: skip


def doctor(run: Run, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    done = run("doctor", "--json", *arguments)
    found: dict[str, list[dict[str, str]]] = {}
    for check in json.loads(done.out)["checks"]:
        found.setdefault(check["about"], []).append(check)
    return done.code, found


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading torch takes seconds, and is looked at where the whole service runs."""
    place = "app.terminal.checkup.installation.find_spec"
    monkeypatch.setattr(place, lambda name: None if name == "torch" else find_spec(name))


@pytest.mark.usefixtures("no_torch")
def test_the_doctor_sees_servers_that_are_well_and_ill(
    run: Run,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    empty_database_url: str,
    redis_url: str,
) -> None:
    assert api.settings.database_url is not None
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", api.settings.database_url.get_secret_value())
    _, found = doctor(run)
    for about in ("postgres", "schema", "broker", "api", "key", "clock", "disk"):
        assert {check["level"] for check in found[about]} <= {"ok", "warn"}, found[about]
    assert found["workers"][0]["level"] == "warn"

    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    code, found = doctor(run)
    assert (code, found["schema"][0]["mend"]) == (1, "run `finetuned prepare`")
    plain = empty_database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")
        assert "wants" in doctor(run)[1]["schema"][0]["says"]
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        assert doctor(run)[1]["schema"][0]["mend"] == "upgrade finetuned here"

    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secretword@127.0.0.1:9/x")
    monkeypatch.setenv("REDIS_URL", "redis://:secretword@127.0.0.1:9/0")
    done = run("doctor", "--json")
    assert done.code == 1
    assert "secretword" not in done.out + done.err
    levels = {check["about"]: check["level"] for check in json.loads(done.out)["checks"]}
    assert (levels["postgres"], levels["broker"]) == ("fail", "fail")


@pytest.mark.usefixtures("no_torch")
def test_the_doctor_sees_a_broker_that_forgets(
    run: Run, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            _, found = doctor(run)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert "set maxmemory-policy noeviction" in [check["mend"] for check in found["broker"]]


@pytest.mark.usefixtures("no_torch")
def test_the_doctor_works_where_nothing_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FINETUNED_URL", "FINETUNED_API_KEY"):
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("FINETUNED_PORT", str(taken.getsockname()[1]))
    assert [check["level"] for check in doctor(run, "--home", str(home))[1]["api"]] == ["note"]
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    (home / "key").write_text("ft_x")
    os.chmod(home / "key", 0o644)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as taken:
        monkeypatch.setenv("FINETUNED_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("FINETUNED_MIN_FREE_BYTES", str(2**60))
        taken.close()
        code, found = doctor(run, "--home", str(home))
    assert code == 1
    assert [check["level"] for check in found["home"]] == ["warn", "fail"]
    assert found["disk"][0]["level"] == "fail"
    said = run("doctor", "--home", str(home)).out
    assert f"to mend it: chmod 700 '{home}'" in said
    monkeypatch.setenv("FINETUNED_PORT", "many")
    assert doctor(run)[1]["settings"][0]["level"] == "fail"


def test_a_check_that_breaks_is_a_verdict() -> None:
    def broken() -> "list[Verdict]":
        raise OSError("no such thing")

    [verdict] = heard("thing", lambda: iter(broken()))
    assert (verdict.level, "no such thing" in verdict.says) == ("fail", True)


@pytest.mark.parametrize(
    ("cuda", "there", "level", "says"),
    [
        (None, False, "fail", "built without CUDA"),
        ("12.8", False, "fail", "cannot use the GPU"),
        ("12.8", True, "ok", "with CUDA 12.8 sees 1 GPUs"),
    ],
)
def test_the_doctor_sees_whether_torch_fits_the_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, there: bool, level: str, says: str
) -> None:
    """With programs that say what a machine with a GPU would: the ones that test this have none."""
    told = {"cuda": cuda, "there": there, "count": 1, "version": "2.13.0"}
    driver = (sys.executable, "-c", "print('NVIDIA H100 80GB HBM3, 570.86.15, 81559')")
    monkeypatch.setattr(installation, "SMI", driver)
    monkeypatch.setattr(installation, "ASK_TORCH", f"print({json.dumps(told)!r})")
    gpu, torch = heard("torch", installation.devices)
    assert (gpu.level, gpu.says) == ("ok", "NVIDIA H100 80GB HBM3, 81559 MiB, driver 570.86.15")
    assert (torch.level, says in torch.says) == (level, True)
    assert (torch.mend is None) == (level == "ok")
