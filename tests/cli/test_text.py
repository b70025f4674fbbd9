"""Other people's names act on no terminal: one place prints, and it spells out what cannot be seen."""

import ast
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import vertebra
from vertebra.cli import app, text
from vertebra.cli.terminal import Terminal
from vertebra.spec import printable

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj[red]x[/red]\r\nline\udcff"
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All that acts on a terminal, or hides, but the end of a line."""


def terminal() -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(file=out, width=200, color_system=None, force_terminal=False), out


@given(st.text(st.characters()))
def test_what_is_printable_is_one_line_and_once_is_enough(words: str) -> None:
    found = printable(words)
    assert not ACTS.search(found)
    assert "\n" not in found
    assert printable(found) == found
    found.encode()


@pytest.mark.parametrize("name", ["日本\u3000語", "naïve\xa0name", "می\u200cخواهم", "👩\u200d🔬", r"a\b"])
def test_words_of_any_language_stay(name: str) -> None:
    assert printable(name) == name


def test_a_byte_that_is_no_utf8_is_shown_as_the_byte() -> None:
    assert printable("a\udcff\x1b") == r"a\xff\x1b"


def test_every_way_to_print_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    table.add_column("column")
    table.add_row(NASTY)
    table.add_row(Text(NASTY))
    out = text.console()
    text.put(out, table)
    text.put_name(out, NASTY)
    out.print(NASTY, Text(NASTY))
    text.say(NASTY)
    text.complain(NASTY)
    text.print_json({"name": NASTY})
    seen = capsys.readouterr()
    assert not ACTS.search(seen.out + seen.err)
    assert seen.out.count("[red]x[/red]") == 7
    assert seen.err.count("\n") == 1


def test_a_cell_is_as_wide_as_what_is_printed() -> None:
    out, printed = terminal()
    table = Table.grid()
    table.add_row("\x1b\x1b\x1b", "|")
    table.add_row("a", "|")
    out.print(table)
    assert len({line.index("|") for line in printed.getvalue().splitlines()}) == 1


def test_a_bar_keeps_its_own_movements_and_its_words_are_safe() -> None:
    out = io.StringIO()
    screen = Terminal(file=out, width=80, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
    with Progress(TextColumn("{task.fields[name]}", markup=False), console=screen) as bar:
        bar.add_task("", name="\x1b]0;owned\x07")
    assert "\x1b[" in out.getvalue()
    assert "\x1b]" not in out.getvalue()
    assert r"\x1b]0;o" in out.getvalue()


def test_no_command_prints_by_itself() -> None:
    for path in Path(text.__file__).parent.glob("*.py"):
        if path.name in ("text.py", "terminal.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in ("print", "Console", "typer.echo", "typer.secho", "sys.stdout.write"), path.name


def test_a_model_and_a_photo_with_such_names(tmp_path: Path) -> None:
    model = vertebra.create_model("dla46_c", num_classes=3)
    model.pretrained_cfg["label_names"] = (NASTY, "[bold]b[/bold]", "c")
    vertebra.save_model(model, tmp_path / "own.safetensors")
    photo = tmp_path / "\x1b]0;owned\x07\nphoto.png"
    Image.new("RGB", (64, 64)).save(photo, "PNG")
    broken = tmp_path / "\x1b[2Jbroken.png"
    broken.write_bytes(b"no image")
    for how in ((), ("--json",)):
        command = ["classify", str(photo), str(broken), "--model", str(tmp_path / "own.safetensors"), *how]
        done = CliRunner().invoke(app, command, prog_name="vertebra")
        assert done.exit_code == 1
        assert not ACTS.search(done.stdout + done.stderr)
        assert "[bold]b[/bold]" in done.stdout
        assert len(done.stderr.splitlines()) == 2
