"""A trainer in pure Python that lives and dies on command: `python -m tests.stand_ins.trainer --wait`.

It stands in for `worker.training` where a test needs hundreds of deaths in a minute, each of a chosen kind at
a chosen step: the real one takes seconds to import torch. Its real twin is driven in tests/flow, in
tests/training/test_process.py and in the last phase of tests/chaos. What it shares with the twin: the line of
JSON it is given, the events (worker.training.events), folders sealed and renamed (worker.training.manifest),
exit codes, SIGTERM, and a result that depends on every step: the weights are a chain of hashes.

The first row of its data file is its script, a JSON object in the row's text:

    steps     how many there are; 10                       save      a checkpoint every so many; 5
    pause     seconds a step takes; 0.01                   size      bytes of a checkpoint; 1000
    rewards   what each step and the last evaluation tell of preference pairs; nothing
    acts      what happens: a list of {"do": …, "at": step, "below": epoch, …}, done once an attempt when the
              step is reached (0: before the first) and, where `below` is given, the job's epoch is less

    exit      leave with `code`, after a `failed` event if there is a `failure` ({"code", "message"})
    signal    end by signal `number`
    silent    say nothing more for ever, SIGTERM obeyed    deaf      SIGTERM is ignored from here on
    shut      close stdout, live on                        hold      leave, while a helper keeps stdout open
    say       write `line` to stdout as it is, `times`     log       write `line` to stderr, `times`
    vanish    remove the checkpoints, finish without one   spoil     damage the model after stating it
    pry       reach for what is not its own, as tests/stand_ins/prisoner.py does with `targets`
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.stand_ins.prisoner import pry
from worker.training import cell, manifest
from worker.training.events import Evaluated, Event, Failed, Finished, Notice, Prepared, Ready, Saved, Step
from worker.training.events import line as as_line

STOPPED = 75
stopping = False


def say(event: Event) -> None:
    sys.stdout.write(as_line(event) + "\n")
    sys.stdout.flush()


def ask(*_: object) -> None:
    global stopping
    stopping = True


class Run:
    """One job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.out = Path(job["out"])
        self.epoch = int(self.out.name.removeprefix("e"))
        first = Path(job["data"]).read_text().splitlines()[0]
        script = json.loads(json.loads(first)["text"])
        self.steps, self.save = int(script.get("steps", 10)), int(script.get("save", 5))
        self.pause, self.size = float(script.get("pause", 0.01)), int(script.get("size", 1000))
        self.acts = [act for act in script.get("acts", []) if self.epoch < act.get("below", 1 << 62)]
        self.rewards = script.get("rewards")
        self.step, self.state = 0, hashlib.sha256(first.encode()).hexdigest()
        self.saved_at, self.digest, self.spoil = 0, "", False
        for folder in map(Path, job.get("resume") or ()):
            try:
                manifest.verify(folder)
            except manifest.Damaged:
                continue
            kept = json.loads((folder / "state.json").read_text())
            self.step, self.state = kept["step"], kept["state"]
            self.saved_at = self.step
            self.checkpoint = folder
            break

    def run(self) -> int:
        say(Prepared(4, 100, 120, 0, self.steps, self.steps, {}, {}, "cpu", "fp32", 1))
        self.act()
        while self.step < self.steps and not stopping:
            time.sleep(self.pause)
            self.step += 1
            self.state = hashlib.sha256(f"{self.state}{self.step}".encode()).hexdigest()
            loss = int(self.state[:8], 16) / 2**32
            share = self.step / self.steps
            told = (self.step, share, loss, 1e-3, 1.0, 10, 10 * self.step, 1000.0, 1 << 20, False)
            say(Step(*told, self.rewards))
            if self.step % self.save == 0 or self.step == self.steps:
                self.write()
            self.act()
        if self.rewards:
            say(Evaluated(self.step, 1.0, 0.5, None, None, 10, self.rewards))
        if self.step != self.saved_at:
            self.write()
        if self.step < self.steps:
            return STOPPED
        self.finish()
        return 0

    def write(self) -> None:
        folder = self.out / "checkpoints" / f"step-{self.step}"
        temporary = folder.with_name(f".saving-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            (temporary / "state.json").write_text(json.dumps({"step": self.step, "state": self.state}))
            (temporary / "model.safetensors").write_bytes(self.state.encode() + bytes(self.size))
            (temporary / "config.json").write_text("{}")
            digest, size = manifest.seal(temporary)
            manifest.commit(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            say(Failed("disk_full", f"The disk is full ({error.errno}).", step=self.step))
            sys.stdout.flush()
            os._exit(79)
        self.saved_at, self.checkpoint = self.step, folder
        say(Saved(self.step, str(folder), digest, size, {}, False, self.step == self.steps))

    def finish(self) -> None:
        temporary, model = self.out / ".publishing-model", self.out / "model"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(self.checkpoint, temporary, ignore=shutil.ignore_patterns(manifest.NAME))
        digest, _ = manifest.seal(temporary)
        manifest.commit(temporary, model)
        if self.spoil:
            (model / "model.safetensors").write_bytes(b"other")
        say(Finished(self.step, "completed", str(model), digest, 10 * self.step, None, None))

    def act(self) -> None:
        for act in [act for act in self.acts if act.get("at", 0) <= self.step]:
            self.acts.remove(act)
            self.do(act)

    def do(self, act: dict[str, Any]) -> None:
        match act["do"]:
            case "exit":
                if "failure" in act:
                    say(Failed(**act["failure"]))
                sys.stdout.flush()
                os._exit(act["code"])
            case "signal":
                os.kill(os.getpid(), act["number"])
                time.sleep(60)
            case "silent":
                while not stopping:
                    time.sleep(0.05)
            case "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "shut":
                sys.stdout.flush()
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                time.sleep(60)
            case "hold":
                sys.stdout.flush()
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
                os._exit(1)
            case "say":
                sys.stdout.write((act["line"] + "\n") * act.get("times", 1))
                sys.stdout.flush()
            case "log":
                for number in range(act.get("times", 1)):
                    sys.stderr.write(act["line"].replace("#", str(number)) + "\n")
                sys.stderr.flush()
            case "vanish":
                sys.stdout.flush()
                os._exit(0)
            case "pry":
                found = pry(act["targets"], self.out)
                say(Notice("info", "pried", "What could be reached.", found))
            case "spoil":
                self.spoil = True


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(STOPPED)
    say(Ready())
    line = sys.stdin.readline()
    signal.signal(signal.SIGTERM, ask)
    status = 0
    if line.strip():
        job = json.loads(line)
        if job.get("confine"):  # what worker.training.job does
            read = [Path(path) for path in (job["data"], job["model"], *job["resume"])]
            cell.confine(read, [Path(job["out"]), Path(job["cache"])], job["confine"]["largest_file"])
        status = Run(job).run()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
