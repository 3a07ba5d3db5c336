"""The house rules that a machine can see, each a check of one file's syntax tree.

A check yields (line, complaint). An exception has its place and its reason in EXCEPTIONS, never in the code.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Findings = Iterator[tuple[int, str]]
# Which module may break which rule, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("data_is_never_run", "app/terminal/recipe.py"): "YAML, by a loader derived from the one of plain data",
    ("statuses_change_in_lifecycle", "app/lifecycle/"): "the verbs themselves",
    ("commits_stand_in_database", "app/database.py"): "transaction(), and the lock around migrations",
    ("environment_is_read_in_settings", "app/embedded/process.py"): "what a child process inherits",
    (
        "environment_is_read_in_settings",
        "worker/training/cell.py",
    ): "the launcher has no packages, ours neither",
    (
        "environment_is_read_in_settings",
        "worker/integrations/follower.py",
    ): "by which libraries find their credentials",
    (
        "environment_is_read_in_settings",
        "worker/generation/confinement.py",
    ): "libraries are told where they may write",
    ("environment_is_read_in_settings", "worker/launch.py"): "the few variables a trainer may inherit",
    (
        "environment_is_read_in_settings",
        "worker/generation/__main__.py",
    ): "what OpenMP is told before torch loads it",
    (
        "environment_is_read_in_settings",
        "worker/training/__main__.py",
    ): "what torchrun tells its children, and what OpenMP is told before torch loads it",
}


@dataclass(frozen=True)
class Rule:
    """`breach` is code that breaks it: a check that does not see this is no check."""

    check: Callable[[ast.Module], Findings]
    breach: str

    @property
    def name(self) -> str:
        return self.check.__name__


def statuses_change_in_lifecycle(tree: ast.Module) -> Findings:
    """Only the verbs of app/lifecycle move a job from one state to another."""
    has_rows = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "app.tables"
        and "Job" in {alias.name for alias in node.names}
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree) if has_rows else ():
        if isinstance(node, ast.Call):
            if _name(node.func) == "Job":
                yield node.lineno, "makes a row of Job"
            if _name(node.func) == "values" and _statement_on(node.func, "Job") and _may_set(node, "status"):
                yield node.lineno, "writes Job.status"
        for target in _targets(node):
            if isinstance(target, ast.Attribute) and target.attr == "status":
                yield target.lineno, "assigns a status where rows of Job are at hand"


def commits_stand_in_database(tree: ast.Module) -> Findings:
    """One transaction a request or task, committed where it was opened."""
    other = ("upload", "target", "manifest")  # files, which appear under their name when committed
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, verb = _name(node.func.value), node.func.attr
            if verb == "commit" and owner not in other:
                yield node.lineno, f"calls {owner}.commit()"
            if verb == "begin" and any(word in owner for word in ("engine", "session", "connection")):
                yield node.lineno, f"calls {owner}.begin(), which commits"


def environment_is_read_in_settings(tree: ast.Module) -> Findings:
    """A variable read elsewhere is one no page lists; pydantic-settings reads those of app/settings.py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
            yield node.lineno, f"reads os.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names} & {"environ", "getenv", "environb"}
            yield from ((node.lineno, f"imports os.{name}") for name in names)


def models_bring_no_code(tree: ast.Module) -> Findings:
    """`trust_remote_code=False`, literally and everywhere: the default of a library may change."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        trust = given.get("trust_remote_code")
        if trust is not None and not (isinstance(trust, ast.Constant) and trust.value is False):
            yield node.lineno, "trust_remote_code is not literally False"
        if isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained" and trust is None:
            yield node.lineno, "from_pretrained without trust_remote_code=False"


def data_is_never_run(tree: ast.Module) -> Findings:
    """No pickle in any of its names, no eval, no exec, no YAML that makes objects."""
    pickles = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    loaders = {("torch", "load"), ("torch", "save"), ("numpy", "load"), ("np", "load"), ("os", "system")}
    loaders |= {("yaml", name) for name in ("load", "load_all", "full_load", "unsafe_load")}
    loaders |= {("runpy", "run_path"), ("torch.hub", "load"), ("hub", "load")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names} & pickles
            yield from ((node.lineno, f"imports {name}") for name in found)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in pickles:
            yield node.lineno, f"imports {node.module}"
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            for argument, wrong in (("allow_pickle", "True"), ("weights_only", "False"), ("shell", "True")):
                if given.get(argument) == wrong:
                    yield node.lineno, f"says {argument}={wrong}"
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile", "__import__"):
                yield node.lineno, f"calls {node.func.id}"
            called = (
                (_name(node.func.value), node.func.attr) if isinstance(node.func, ast.Attribute) else None
            )
            if called in loaders:
                yield node.lineno, f"calls {called[0]}.{called[1]}"


def relations_are_loaded_on_purpose(tree: ast.Module) -> Findings:
    """An attribute that queries by itself does so in a loop sooner or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) == "relationship":
            lazy = {keyword.arg: keyword.value for keyword in node.keywords}.get("lazy")
            if not (isinstance(lazy, ast.Constant) and lazy.value == "raise"):
                yield node.lineno, 'a relationship without lazy="raise"'


JOB = "from app.tables import Job\n"
RULES = (
    Rule(statuses_change_in_lifecycle, f"{JOB}update(Job).where(Job.id == job).values(status='running')"),
    Rule(statuses_change_in_lifecycle, f"{JOB}update(Job).values(**changes)"),
    Rule(statuses_change_in_lifecycle, f"{JOB}row.status = 'running'"),
    Rule(statuses_change_in_lifecycle, f"{JOB}session.add(Job(status='queued'))"),
    Rule(commits_stand_in_database, "await session.commit()"),
    Rule(commits_stand_in_database, "with engine.begin() as connection: pass"),
    Rule(environment_is_read_in_settings, "import os\nhome = os.environ['HOME']"),
    Rule(environment_is_read_in_settings, "from os import getenv"),
    Rule(models_bring_no_code, "AutoTokenizer.from_pretrained(folder)"),
    Rule(models_bring_no_code, "AutoConfig.from_pretrained(folder, trust_remote_code=trusted)"),
    Rule(models_bring_no_code, "load(folder, trust_remote_code=True)"),
    Rule(data_is_never_run, "import pickle"),
    Rule(data_is_never_run, "from joblib import load"),
    Rule(data_is_never_run, "state = torch.load(path)"),
    Rule(data_is_never_run, "eval(text)"),
    Rule(data_is_never_run, "said = yaml.load(text)"),
    Rule(data_is_never_run, "tensors = read(path, weights_only=False)"),
    Rule(data_is_never_run, "numbers = np.memmap(path, allow_pickle=True)"),
    Rule(relations_are_loaded_on_purpose, "events = relationship(Event)"),
)


def _name(node: ast.expr) -> str:
    """`x` of `x`, and `y` of `x.y`."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _statement_on(node: ast.expr, table: str) -> bool:
    """Whether a chain of calls, `update(Job).where(...).values`, begins with a write to `table`."""
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Call) and _name(node.func) in ("update", "insert"):
            return any(_name(argument) == table for argument in node.args)
        node = node.func if isinstance(node, ast.Call) else node.value
    return False


def _may_set(call: ast.Call, column: str) -> bool:
    """Whether it names the column, or leaves open (`**changes`) what it sets."""
    return bool(call.args) or any(keyword.arg in (column, None) for keyword in call.keywords)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
