"""Values of records: what a declared type takes, and the one line that says what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from vertebra.spec import VertebraError, parse_json, parse_object, value_as

TAKEN: list[tuple[Any, Any, Any]] = [
    (int, 3, 3),
    (int, np.int64(3), 3),
    (float, 1, 1.0),
    (float, np.float32(0.5), 0.5),
    (bool, True, True),
    (str, "a", "a"),
    (str, Path("a"), "a"),
    (str | None, None, None),
    (int | tuple[int, int], [3, 4], (3, 4)),
    (tuple[int, int, int], [3, 224, 224], (3, 224, 224)),
    (tuple[float, ...], [1, 0.5], (1.0, 0.5)),
    (tuple[str, ...], (), ()),
    (list[str], ["a"], ["a"]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (Literal["a", "b"], "b", "b"),
    (Any, object, object),
    (type[torch.nn.Module] | None, torch.nn.ReLU, torch.nn.ReLU),
]


@pytest.mark.parametrize(("kind", "value", "found"), TAKEN, ids=str)
def test_what_a_type_takes(kind: Any, value: Any, found: Any) -> None:
    made = value_as(kind, value, "x", "record")
    assert made == found
    assert type(made) is type(found)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, True, "x is True; it must be a whole number"),
        (int, 1.5, "x is 1.5; it must be a whole number"),
        (float, "1", "x is '1'; it must be a number"),
        (float, float("nan"), "x is nan; it must be a number"),
        (float, 10**400, "it must be a number"),
        (str, 3, "x is 3; it must be text"),
        (str, None, "x is None; it must be text"),
        (tuple[int, int, int], [3, 224], "it must be a list of 3: a whole number each"),
        (tuple[int, int, int], "abc", "it must be a list of 3: a whole number each"),
        (tuple[float, ...], ["a"], "it must be a list of a number each"),
        (int | None, [], r"x is \[\]; it must be a whole number or null"),
        (dict[str, int], {"a": "b"}, "x is an object; it must be an object of names"),
        (Literal["a", "b"], "c", "it must be 'a' or 'b'"),
        (list[str], ["x" * 99], None),
        (list[int], ["x" * 99], r"x is \['x{40,60}\.\.\.; it must"),
    ],
    ids=str,
)
def test_what_a_type_refuses(kind: Any, value: Any, message: str | None) -> None:
    if message is None:
        assert value_as(kind, value, "x", "record") == value
        return
    with pytest.raises(VertebraError, match=f"^record: .*{message}"):
        value_as(kind, value, "x", "record")


def test_tensors_pass_through_a_mapping_as_they_are() -> None:
    state = {"a": torch.ones(2)}
    assert value_as(Mapping[str, Any], state, "state_dict", "record")["a"] is state["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "record is not JSON: "),
        ("{", "record is not JSON: "),
        (b"\xff", "record is not JSON: "),
        ("[" * 100_000, "record is not JSON that can be read: it is nested too deeply"),
        ("1" * 5000, "record is not JSON: "),
    ],
    ids=["nothing", "half", "latin", "deep", "long"],
)
def test_broken_json(text: str | bytes, message: str) -> None:
    with pytest.raises(VertebraError, match=message) as caught:
        parse_json(text, "record")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "what"), [("[1]", "list"), ("null", "NoneType"), ('"a"', "str"), ("1", "int")])
def test_an_object_is_asked_for(text: str, what: str) -> None:
    with pytest.raises(VertebraError, match=f"record holds a {what}, not an object"):
        parse_object(text, "record")
