"""`finetuned watch`: a job as it goes, and how it ended. The job does not notice whether anybody watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.terminal import ids, plot, screen
from app.terminal.connection import connected
from app.terminal.jobs import ENDINGS, JobId, event_line, progress
from app.terminal.outcome import Exit, Failure, Refused

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

POINTS = 1000  # of a curve; a terminal shows fewer
LOOK_AGAIN = 5.0  # seconds after which the job itself is asked for, besides what streams in
PLOT_HEIGHT, TALLEST_SHARE = 14, 0.6  # lines, and of the terminal's height
SAY_EVERY = 10.0  # seconds between lines about steps where there is no terminal
NEWS = 20  # events that are shown of what was before
FRAMES_A_SECOND = 4
BUSY = (429, 500, 502, 503, 504)


@connected
def watch(
    api: "Api",
    job_id: JobId,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each message of the stream as one line of JSON")
    ] = False,
) -> None:
    """Watch a job until it ends; Ctrl-C leaves it running.

    The exit code says how it ended: 0 succeeded, 4 failed, 5 cancelled, 6 paused.
    """
    watch_job(api, ids.job(api, job_id), as_json=as_json)


def watch_job(api: "Api", job_id: str, *, as_json: bool = False) -> None:
    """Ends by typer.Exit, with the code for the job's end."""
    try:
        ended = _follow_as_json(api, job_id) if as_json else _show(api, job_id)
    except KeyboardInterrupt:
        screen.note(f"\n{job_id} goes on without you. To return: finetuned watch {job_id}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if not as_json:
        _tell_end(ended)
    raise typer.Exit(ENDINGS[ended["status"]])


def _follow_as_json(api: "Api", job_id: str) -> "JsonObject":
    from app.terminal.follow import follow

    for message in follow(api, job_id):
        if message.body is not None:
            screen.show_json(message.body, line=True)
            if (message.body.get("data") or {}).get("code") == "paused":
                job = api.get(f"/v1/fine_tuning/jobs/{job_id}")
                if job["status"] in ENDINGS:  # else it has been resumed by now
                    return job
    return api.get(f"/v1/fine_tuning/jobs/{job_id}")


class Course:
    """What is known of a job by now."""

    def __init__(self, api: "Api", job_id: str) -> None:
        self._api, self._where = api, f"/v1/fine_tuning/jobs/{job_id}"
        steps = api.get(f"{self._where}/metrics", points=POINTS)["data"]
        self.steps: list[JsonObject] = steps
        self.newest = list(reversed(api.get(f"{self._where}/events", limit=NEWS)["data"]))
        # Asked for last, so that an end that is seen here leaves nothing out of the above.
        self.job = api.get(self._where)
        self._asked = time.monotonic()
        self.lost = False
        self._seen: tuple[float, int] | None = None  # when, and at which step, this watching began

    @property
    def cursor(self) -> str:
        """Where the stream goes on behind what is known."""
        step = self.steps[-1]["step"] if self.steps else -1
        return f"{self.newest[-1]['id'] if self.newest else ''}:{step if step >= 0 else ''}".rstrip(":")

    def is_done(self) -> bool:
        return self.job["status"] in ENDINGS

    def ask(self, *, at_once: bool = False) -> None:
        """How the job is by now; left as it was where the service is away, which the stream sits out."""
        if at_once or time.monotonic() - self._asked > LOOK_AGAIN:
            self._asked = time.monotonic()
            try:
                self.job = self._api.get(self._where)
            except Failure as failure:
                if isinstance(failure, Refused) and failure.status not in BUSY:
                    raise

    def add_step(self, row: "JsonObject") -> None:
        self.steps.append(row)
        self._seen = self._seen or (time.monotonic(), row["step"])
        if (
            len(self.steps) > 4 * POINTS
        ):  # the newest whole, of the rest every second one, and what was evaluated
            old, new = self.steps[:-POINTS], self.steps[-POINTS:]
            self.steps = [r for at, r in enumerate(old) if at % 2 == 0 or "valid_loss" in r] + new

    def add_evaluation(self, step: int, loss: float | None) -> None:
        """Of a step that was heard of before it was evaluated: the stream does not send it again."""
        for row in reversed(self.steps):
            if row["step"] == step:
                row["valid_loss"] = loss
                return

    @property
    def step(self) -> int:
        return max(self.job["progress"]["step"] or 0, self.steps[-1]["step"] if self.steps else 0)

    @property
    def total(self) -> int | None:
        total: int | None = self.job["progress"]["total_steps"]
        return total

    @property
    def seconds_left(self) -> float | None:
        """By the pace since watching began, else by what the service estimates."""
        if self.total and self._seen is not None and (made := self.step - self._seen[1]) > 2:
            return (time.monotonic() - self._seen[0]) / made * (self.total - self.step)
        finish = self.job["estimated_finish"]
        return None if finish is None else max(0.0, finish - time.time())

    def curves(self) -> list[plot.Curve]:
        def points(name: str) -> list[plot.Point]:
            return [(row["step"], row[name]) for row in self.steps if row.get(name) is not None]

        curves = [plot.Curve("training loss", points("loss"))]
        if valid := points("valid_loss"):
            curves.append(plot.Curve("validation loss", valid))
        return curves

    @property
    def facts(self) -> str:
        newest = next((row for row in reversed(self.steps) if row["loss"] is not None), None)
        valid = next((row for row in reversed(self.steps) if row.get("valid_loss") is not None), None)
        told = []
        if newest is not None:
            told += [f"loss {newest['loss']:.4f}"]
        if valid is not None:
            told += [f"validation {valid['valid_loss']:.4f}"]
        if newest is not None and newest["tokens_per_second"]:
            told += [f"{newest['tokens_per_second']:,.0f} tokens/s"]
        return "  ".join(told)


def _show(api: "Api", job_id: str) -> "JsonObject":
    """Until the job has ended or is paused; the job as it then is."""
    from app.terminal.follow import follow

    course, console = Course(api, job_id), screen.console()
    for row in course.newest:
        if row["type"] != "metrics":
            screen.say(event_line(row))
    if course.is_done():
        return course.job
    with _view(course, console) as tell:
        for message in follow(api, job_id, course.cursor):
            course.lost = message.lost
            _take(course, message.body, tell)
            if course.is_done():
                break
    return course.job if course.is_done() else api.get(f"/v1/fine_tuning/jobs/{job_id}")


def _take(course: Course, body: "JsonObject | None", tell: "_Tell") -> None:
    kind = None if body is None else body.get("object")
    if body is None:
        if not course.lost:  # else it cannot be asked
            course.ask()
    elif kind == "fine_tuning.job.metric":
        course.add_step(body)
        tell.step()
        course.ask()
    elif kind == "fine_tuning.job.event":
        data = body.get("data") or {}
        if body["type"] != "metrics":
            tell.event(body)
            course.ask(at_once=True)
        elif data.get("code") == "evaluated":
            course.add_evaluation(data["step"], data["loss"])
    elif kind == "fine_tuning.job":
        course.job = body


class _Tell:
    """Where there is no terminal: a line for each event, and now and then one about the steps."""

    def __init__(self, course: Course) -> None:
        self._course, self._said = course, time.monotonic()

    def event(self, row: "JsonObject") -> None:
        screen.say(event_line(row))

    def step(self) -> None:
        if time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            left = screen.span(self._course.seconds_left)
            screen.say(
                f"step {self._course.step:,}/{self._course.total or 0:,}  {self._course.facts}  {left} left"
            )


class _Picture(_Tell):
    """In a terminal: events scroll by above a picture that stays."""

    def step(self) -> None:
        pass

    def event(self, row: "JsonObject") -> None:
        self.live.console.print(event_line(row), soft_wrap=True)

    live: Live

    def __rich_console__(self, console: Console, _: object) -> Iterator[Group]:
        yield Group(*self._parts(console))

    def _parts(self, console: Console) -> Iterator[Text | Table]:
        course = self._course
        tall = min(PLOT_HEIGHT, int(console.size.height * TALLEST_SHARE))
        yield from plot.draw(
            course.curves(),
            console.size.width - 1,
            tall,
            colours=console.color_system is not None and not console.no_color,
        )
        job = course.job
        state = Text("away, asking again", "red") if course.lost else screen.status(job["status"])
        yield Text.assemble(f"{job['id']}  {screen.plain(job['model'])}  ", state)
        if job["status"] == "queued":
            yield Text(progress(job), "dim")
        if course.total:
            line = Table.grid(padding=(0, 2))
            line.add_row(
                ProgressBar(course.total, course.step, width=max(10, console.size.width // 3)),
                f"{course.step:,}/{course.total:,}",
                f"{screen.span(course.seconds_left)} left",
            )
            yield line
        elif job["progress"]["phase"]:
            yield Text(screen.plain(job["progress"]["phase"]), "dim")
        yield Text(course.facts)


@contextmanager
def _view(course: Course, console: Console) -> Iterator[_Tell]:
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Tell(course)
        return
    picture = _Picture(course)
    with Live(picture, console=console, refresh_per_second=FRAMES_A_SECOND, vertical_overflow="crop") as live:
        picture.live = live
        yield picture


def _tell_end(job: "JsonObject") -> None:
    error = job["error"] or {}
    match job["status"]:
        case "succeeded":
            screen.say(f"{job['id']} succeeded: {job['fine_tuned_model']}", "green")
            screen.note(f'Next: finetuned generate {job["fine_tuned_model"]} "…"')
        case "failed":
            screen.say(f"{job['id']} failed: {error.get('message')} ({error.get('code')})", "red")
        case "paused":
            screen.say(f"{job['id']} is paused. To go on: finetuned resume {job['id']}", "magenta")
        case _:
            screen.say(f"{job['id']} was cancelled.")
