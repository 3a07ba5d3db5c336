"""The second line between owners: a request's query that forgets its owner finds that owner's rows alone.

And what the second line does not change: who names no owner has everything.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import structlog
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import BindParameter, ColumnElement, Table, event, func, select, text, true
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression
from sqlalchemy.sql.visitors import replacement_traverse

from app import posture
from app.database import Database, run
from app.guard import GuardedSession, everybody
from app.tables import Base, Job
from tests.app.conftest import Api
from tests.security.test_owners import ADMINS, BODIES, LISTS, NAMED, blurred, fill
from tests.security.things import UNKNOWN, Things, make_job, make_things

APP = Path(__file__).parents[2] / "app"
# Parts of an owner's things without a policy.
OPEN = {"metrics"}  # numbers alone, of perhaps a million steps: docs/security.md
# Where a request sees everybody's rows; why is said there.
EVERYBODY = {
    "catalogue.py": 2,
    "forecast.py": 3,
    "job_inputs.py": 1,
    "routes/models.py": 1,
    "routes/storage_use.py": 1,
    "routes/workers.py": 1,
}
# Routes that do from end to end.
EVERYBODYS = {"routes/audit_log.py": 1, "routes/keys.py": 6, "routes/metrics.py": 1}
NOBODYS = {
    "auth.py",  # whose request it is, is being found out
    "dispatch.py",
    "feed.py",  # one look for all that listen, who were let in before
    "routes/health.py",
    "webhooks/courier.py",
}


def has_owner(table: Table) -> bool:
    """Whether a row is an owner's: by its own column, or as a part of what is."""
    return "owner" in table.columns or any(has_owner(key.column.table) for key in table.foreign_keys)


OWNED = {table.name for table in Base.metadata.sorted_tables if has_owner(table)}


@pytest.fixture(scope="module")
def theirs(api: Api) -> Things:
    with api.http() as owner:
        return make_things(owner, api.settings, api.settings.organization, "canaryword")


@pytest.fixture(scope="module")
def stranger(api: Api, theirs: Things) -> Iterator[httpx2.Client]:
    """Who has a file and a job; made before any predicate is taken away."""
    with api.http(api.stranger_key) as client:
        make_job(client)
        yield client


@pytest.fixture(scope="module")
def plain(api: Api, stranger: httpx2.Client) -> Iterator[psycopg.Connection[Any]]:
    """As the programs connect, past all of our code."""
    assert api.settings.database_url is not None
    url = api.settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def forgetful() -> Iterator[list[str]]:
    """While it lasts no statement of a request says `owner = …`; which were to."""
    forgotten: list[str] = []

    def forget(element: Any, **_: Any) -> ColumnElement[bool] | None:
        if (
            isinstance(element, BinaryExpression)
            and element.operator is operators.eq
            and getattr(element.left, "name", None) == "owner"
            and isinstance(element.right, BindParameter)
        ):
            forgotten.append(str(element))
            return true()
        return None

    def execute(state: ORMExecuteState) -> None:
        statement: Any = state.statement
        state.statement = replacement_traverse(statement, {}, forget)

    event.listen(GuardedSession, "do_orm_execute", execute)
    yield forgotten
    event.remove(GuardedSession, "do_orm_execute", execute)


def counts(connection: psycopg.Connection[Any], owner: str | None) -> dict[str, int]:
    found = {}
    with connection.transaction():
        if owner is not None:
            connection.execute("SELECT set_config('finetuned.owner', %s, true)", [owner])
        for name in OWNED - OPEN:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
            (row,) = connection.execute(query).fetchall()
            found[name] = row[0]
    return found


def test_every_table_of_owners_has_its_policy(plain: psycopg.Connection[Any]) -> None:
    forced = plain.execute("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
    assert {name for (name,) in forced} == OWNED - OPEN, "docs/security.md, and migration 0011 for how"
    policies = plain.execute("SELECT tablename FROM pg_policies").fetchall()
    assert sorted(name for (name,) in policies) == sorted(OWNED - OPEN)


def test_the_role_of_the_programs_obeys_it(plain: psycopg.Connection[Any]) -> None:
    query = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
    assert plain.execute(query).fetchall() == [(False,)]


def test_a_role_that_does_not_is_warned_of(api: Api, postgres_url: str) -> None:
    with structlog.testing.capture_logs() as said:
        posture.look_at_role(api.settings)
        assert said == []
        posture.look_at_role(api.settings.model_copy(update={"database_url": SecretStr(postgres_url)}))
    assert [(line["event"], line["role"]) for line in said] == [("database_role_above_policies", "postgres")]


def test_who_names_an_owner_has_theirs_and_who_names_none_has_all(
    plain: psycopg.Connection[Any], api: Api
) -> None:
    everything = counts(plain, None)
    assert {name for name in everything if not everything[name]} == {"attempts"}, "or it would prove nothing"
    theirs, strangers = (counts(plain, owner) for owner in (api.settings.organization, "stranger"))
    assert everything == {name: theirs[name] + strangers[name] for name in everything}
    with_any = {name for name in strangers if strangers[name]}
    assert with_any == {"api_keys", "audit_log", "events", "files", "jobs"}
    assert counts(plain, "") == everything, "which is what a named owner leaves behind in a connection"
    assert set(counts(plain, "nobody").values()) == {0}


def test_others_rows_can_be_neither_changed_nor_made(plain: psycopg.Connection[Any], theirs: Things) -> None:
    with plain.transaction():
        plain.execute("SELECT set_config('finetuned.owner', 'stranger', true)")
        for statement in (
            "UPDATE jobs SET suffix = 'mine' WHERE id = %(job_id)s",
            "DELETE FROM models WHERE name = %(model)s",
            "UPDATE checkpoints SET pinned = true WHERE id = %(checkpoint_id)s",
            "DELETE FROM webhook_endpoints WHERE id = %(webhook_endpoint_id)s",
        ):
            assert plain.execute(statement, theirs.ids).rowcount == 0, statement
        for statement in (
            "UPDATE jobs SET owner = 'finetuned' WHERE owner = 'stranger'",
            "INSERT INTO events (id, job_id, level, code, message) VALUES ('e', %(job_id)s, 'info', '', '')",
            "INSERT INTO upload_parts (id, upload_id, bytes, sha256) VALUES ('p', %(upload_id)s, 1, 'x')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), plain.transaction():
                plain.execute(statement, theirs.ids)


def test_without_the_first_line_the_second_holds_on_every_route(
    stranger: httpx2.Client, theirs: Things, forgetful: list[str]
) -> None:
    nothing = {**UNKNOWN, "path": "config.json"}
    for call in NAMED:
        if call.path in ADMINS:
            continue
        sent = BODIES.get(call.name, {})
        for kind in ("model", "checkpoint") if "model" in call.params else (None,):
            mine, none = ({**ids, "model": ids[kind]} if kind else ids for ids in (theirs.ids, nothing))
            found = stranger.request(call.method, fill(call, mine), **sent)
            unknown = stranger.request(call.method, fill(call, none), **sent)
            assert found.status_code == 404, (call.name, found.text)
            assert blurred(found, mine) == blurred(unknown, none), call.name
    for call in LISTS:
        if call.path not in ADMINS:
            answer = stranger.get(call.path)
            assert answer.status_code == 200, answer.text
            secrets = [theirs.word, *(value for name, value in theirs.ids.items() if name != "path")]
            assert [secret for secret in secrets if secret in answer.text] == [], call.name
    tables = {said.partition(".")[0] for said in forgetful}
    assert tables >= {"files", "jobs", "models", "uploads", "webhook_endpoints"}


def jobs(session: Session) -> int | None:
    return session.scalar(select(func.count()).select_from(Job))


def look_around(session: Session) -> tuple[int | None, ...]:
    with everybody(session):
        with everybody(session):
            inner = jobs(session)
        outer = jobs(session)
    return inner, outer, jobs(session)


def fail(session: Session, statement: str) -> None:
    with everybody(session):
        session.execute(text(statement))
        raise LookupError


async def test_whoever_looks_at_everybodys_rows_is_back_among_their_own_even_by_an_exception(
    api: Api, stranger: httpx2.Client
) -> None:
    database = Database(api.settings)
    async with database.transaction("stranger") as session:
        assert await run(session, look_around) == (2, 2, 1)
        with pytest.raises(LookupError):
            await run(session, fail, "SELECT 1")
        assert await run(session, jobs) == 1
        with pytest.raises(DBAPIError):
            await run(session, fail, "SELECT 1/0")
        await session.rollback()
        assert await run(session, jobs) == 1, "and so is the next transaction of the session"
    async with database.transaction() as session:
        assert await run(session, jobs) == 2, "on the same connection"
    await database.close()


def calls(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found[name if name != "transaction" or node.args else "transaction()"] += 1
        if isinstance(node, ast.arg) and ast.unparse(node.annotation or node).endswith("EverybodysSession"):
            found["EverybodysSession"] += 1
    return found


def test_every_place_that_sees_others_rows_is_known() -> None:
    found = {path.relative_to(APP).as_posix(): calls(path) for path in APP.rglob("*.py")}
    for name, known in (("everybody", EVERYBODY), ("EverybodysSession", EVERYBODYS)):
        assert {path: named[name] for path, named in found.items() if named[name]} == known
    assert {path for path, named in found.items() if named["transaction()"]} == NOBODYS
