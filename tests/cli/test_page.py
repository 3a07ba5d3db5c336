"""docs/cli.md and `--help` say the same: every command and option stands on the page, and no other."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from app.cli import commands
from app.terminal.outcome import Exit

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text()
EVERYWHERE = {"--url", "--key-file", "--home", "--help"}  # said once, above all commands
SECTIONS = dict(re.findall(r"^### `finetuned ([^`]+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, each in inner.items():
        yield from leaves(each, f"{name} {word}".strip())


ROOT = get_command(commands)
COMMANDS = dict(leaves(ROOT))


def options(command: Any) -> set[str]:
    return {word for each in command.params for word in [*each.opts, *each.secondary_opts] if word[0] == "-"}


def test_every_command_has_its_section_and_no_section_is_left_over() -> None:
    assert sorted(SECTIONS) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_its_section_and_no_other(name: str) -> None:
    said = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", SECTIONS[name]))
    have = options(COMMANDS[name])
    # Others may be spoken of where they belong to a command that is named.
    others = {word for other in COMMANDS.values() for word in options(other)}
    assert have - EVERYWHERE - said == set()
    assert said - others - EVERYWHERE == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is(name: str) -> None:
    command = COMMANDS[name]
    assert (command.help or "").strip()
    assert [each.name for each in command.params if not (each.help or "").strip()] == []


def lines() -> list[str]:
    """Every command line of the page, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("finetuned ")]


@pytest.mark.parametrize("line", lines())
def test_every_command_line_of_the_page_can_be_read(line: str) -> None:
    words = shlex.split(re.split(" [<>|] ", line)[0], comments=True)[1:]
    command: Any = ROOT
    name = ""
    while hasattr(command, "commands"):
        word = words.pop(0)
        command, name = command.commands[word], f"{name} {word}".strip()
    with command.make_context(name, words) as context:
        assert context.params


def test_every_exit_code_stands_on_the_page() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == set(Exit)
