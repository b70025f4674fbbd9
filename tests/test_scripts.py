"""The shell scripts: what they say when something is wrong. (That they work is shown by every run of the tests.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=base | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with scripts, and nothing installed."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for script in (ROOT / "scripts").iterdir():
        copy = root / "scripts" / script.name
        copy.write_bytes(script.read_bytes())
        copy.chmod(script.stat().st_mode)
    (root / "pyproject.toml").write_text("[project]\nname = 'vertebra'\n")
    return root


def pretend_venv(root: Path, pip: str) -> None:
    """A .venv whose python is the one that runs this test, except for `-m pip`, which runs the shell line `pip`."""
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nif [ "$2" = pip ]; then {pip}; fi\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("vertebra", "ruff", "pyright", "lint-imports"):
        tool = python.with_name(name)
        tool.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        tool.chmod(0o755)


def test_demo_names_a_missing_photo_before_it_installs_anything(checkout: Path) -> None:
    done = run(checkout / "scripts/demo", "no-such.jpg", cwd=checkout.parent)
    assert (done.returncode, done.stderr) == (2, "demo: no such photo: no-such.jpg\n")
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("script", ["demo", "test", "check"])
def test_no_python_is_one_line(checkout: Path, script: str) -> None:
    done = run(checkout / "scripts" / script, cwd=checkout, PYTHON="python-that-is-not-there")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Python 3.11 or newer found among: python-that-is-not-there" in done.stderr


@pytest.mark.parametrize("script", ["demo", "test", "check"])
def test_a_failed_installation_ends_with_one_clear_line(checkout: Path, script: str) -> None:
    pretend_venv(checkout, pip='echo "lots of noise"; echo "ERROR: no matching distribution"; exit 1')
    done = run(checkout / "scripts" / script, cwd=checkout.parent)
    assert done.returncode == 1
    assert "noise" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2] == "ERROR: no matching distribution"
    assert lines[-1].startswith(f"{script}: the installation failed")
    assert lines[-1].endswith(f"all that pip said is in {checkout}/.venv/install.log")


def test_installs_once_and_again_when_pyproject_changes(checkout: Path) -> None:
    calls = checkout / "calls"
    pretend_venv(checkout, pip=f'echo "$@" >> "{calls}"; exit 0')

    def demo(*photos: str | Path) -> list[str]:
        done = run(checkout / "scripts/demo", *photos, cwd=checkout)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    photo = checkout / "pyproject.toml"
    assert demo(photo)[:2] == ["vertebra", "classify"]
    demo(photo)
    assert len(calls.read_text().splitlines()) == 1
    photo.write_text(photo.read_text() + "version = '2'\n")
    demo(photo)
    assert len(calls.read_text().splitlines()) == 2
    assert calls.read_text().splitlines()[-1].endswith(f"--editable {checkout}[demo]")


def test_check_runs_every_tool_and_names_what_failed(checkout: Path) -> None:
    pretend_venv(checkout, pip="exit 0")
    assert run(checkout / "scripts/check", cwd=checkout).returncode == 0
    (checkout / ".venv/bin/pyright").write_text("#!/bin/sh\nexit 1\n")
    done = run(checkout / "scripts/check", cwd=checkout.parent)
    assert done.returncode == 1
    assert "lint-imports --no-cache" in done.stdout
    assert "check: failed: pyright; see above" in done.stderr
