"""The user's cache folder: where it is, and that nobody needs it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from vertebra.spec import cache


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "own"))
    assert cache.root() == tmp_path / "own"
    assert cache.root("~/x") == Path.home() / "x"
    monkeypatch.delenv("VERTEBRA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "vertebra"


def test_who_has_no_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("VERTEBRA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # a user that the system does not know
    path = cache.root() / "notes.json"
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.note(path, number=number)
    assert cache.notes(path) == {}
    (told,) = [r.message for r in caplog.records]
    assert told.startswith("nothing can be kept in /dev/null/vertebra: there is no home folder (HOME is not set); ")
    assert told.endswith("VERTEBRA_CACHE names another folder")


def test_notes_are_added_and_damaged_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.json"
    cache.note(path, **{"a key": 1})
    cache.note(path, other=[2])
    assert cache.notes(path) == {"a key": 1, "other": [2]}
    path.write_text("[1]")
    assert cache.notes(path) == {}
    assert cache.notes(tmp_path) == {}
