"""What the database accepted, in order, written down by triggers of its own: the service has no hook for it.

A job's row is locked by whoever writes about the job, so `seq` orders all that was written about one job.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

ENDED = ("succeeded", "failed", "cancelled")

TRIGGERS = """
CREATE TABLE history (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  tx xid8 NOT NULL DEFAULT pg_current_xact_id(), kind text NOT NULL, job text NOT NULL, epoch bigint,
  step bigint, status text, was text
);
CREATE FUNCTION record_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' OR NEW.status <> OLD.status OR NEW.epoch <> OLD.epoch THEN
    INSERT INTO history (kind, job, epoch, step, status, was)
    VALUES (CASE WHEN TG_OP = 'INSERT' THEN 'create' WHEN NEW.status = 'running' THEN 'claim'
                 WHEN OLD.status = 'running' AND NEW.epoch > OLD.epoch THEN 'reap'
                 WHEN OLD.status = 'running' THEN 'leave' ELSE 'move' END,
            NEW.id, CASE WHEN TG_OP = 'UPDATE' AND OLD.status = 'running' THEN OLD.epoch ELSE NEW.epoch END,
            NEW.step, NEW.status, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END);
  END IF;
  RETURN NULL;
END $$;
CREATE FUNCTION record_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO history (kind, job, epoch, step) VALUES (TG_ARGV[0], NEW.job_id, NEW.epoch, NEW.step);
  RETURN NULL;
END $$;
CREATE FUNCTION record_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO history (kind, job, epoch, status) VALUES ('end', NEW.job_id, NEW.epoch, NEW.reason);
  RETURN NULL;
END $$;
CREATE FUNCTION record_model() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO history (kind, job, epoch)
  VALUES ('model', NEW.job_id, substring(NEW.key from '-e(\\d+)$')::bigint);
  RETURN NULL;
END $$;
CREATE TRIGGER record AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION record_job();
CREATE TRIGGER record AFTER INSERT OR UPDATE ON metrics FOR EACH ROW EXECUTE FUNCTION record_write('metric');
CREATE TRIGGER record AFTER INSERT OR UPDATE OF epoch, key ON checkpoints
  FOR EACH ROW WHEN (NEW.key IS NOT NULL) EXECUTE FUNCTION record_write('checkpoint');
CREATE TRIGGER record AFTER UPDATE OF ended_at ON attempts FOR EACH ROW EXECUTE FUNCTION record_end();
CREATE TRIGGER record AFTER INSERT ON models FOR EACH ROW EXECUTE FUNCTION record_model();
"""


def install(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TRIGGERS)


@dataclass
class State:
    """Of one job, as far as its history has been read."""

    status: str = ""
    epoch: int = 0
    finishes: int = 0
    steps: set[int] = field(default_factory=set)


def violations(rows: list[dict[str, Any]]) -> list[str]:
    """What must never be seen in a history, in its order."""
    found: list[str] = []
    states: dict[str, State] = defaultdict(State)
    ends = {(row["tx"], row["job"], row["epoch"]) for row in rows if row["kind"] == "end"}
    for row in rows:
        state, kind, epoch = states[row["job"]], row["kind"], row["epoch"]
        where = f"{row['job']} seq {row['seq']}: {kind} by epoch {epoch} (now {state.status} {state.epoch})"
        if state.status in ENDED and not (kind in ("end", "model") and state.epoch == epoch):
            found.append(f"write after the end: {where}")
        match kind:
            case "metric" | "checkpoint":
                if epoch != state.epoch or state.status != "running":
                    found.append(f"write by a fenced epoch: {where}")
                if kind == "metric":
                    state.steps.add(row["step"])
            case "end" | "model":
                if epoch != state.epoch:
                    found.append(f"write by a fenced epoch: {where}")
            case "claim":
                if epoch <= state.epoch or state.status == "running":
                    found.append(f"two holders: {where}")
            case "leave" | "reap":
                if (row["tx"], row["job"], epoch) not in ends:
                    found.append(f"left by somebody who did not hold it: {where}")
        if kind in ("create", "claim", "leave", "reap", "move"):
            state.status = row["status"]
            state.epoch = epoch
            state.finishes += row["status"] in ENDED
    for job, state in states.items():
        if state.finishes > 1:
            found.append(f"{job} finished {state.finishes} times")
        if state.steps and state.steps != set(range(1, max(state.steps) + 1)):
            found.append(f"{job} has gaps in its steps")
    return found


def read(database: str) -> list[dict[str, Any]]:
    with psycopg.connect(database, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM history ORDER BY seq").fetchall()
