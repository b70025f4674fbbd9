"""Records broken in every place: what each loader must survive."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from vertebra.spec import VertebraError

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    10**400,
    "",
    "\x1b[2J",
    [],
    [[]],
    ["a", 1],
    [-1, 0, 0],
    {},
    {"a": {"b": []}},
)


def places(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, the first and the last of a list."""
    yield path
    keys: Any = (
        record
        if isinstance(record, dict)
        else sorted({0, len(record) - 1})
        if record and isinstance(record, list)
        else ()
    )
    for key in keys:
        yield from places(record[key], (*path, key))


def broken(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was done, the record with one value replaced or taken away)."""
    for path in places(record):
        if not path:
            continue
        for odd in (*ODD, "gone"):
            new = copy.deepcopy(record)
            parent = new
            for key in path[:-1]:
                parent = parent[key]
            if odd == "gone":
                del parent[path[-1]]
            else:
                parent[path[-1]] = odd
            yield f"{'.'.join(map(str, path))} = {str(odd)[:20]}", new


def refused(call: Callable[[], Any], what: str) -> bool:
    """Whether the error is ours and one line; anything else is a fault."""
    message = None
    try:
        call()
    except VertebraError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    assert message is None or (message and "\n" not in message)
    return message is not None


def broken_texts(record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(what was done, bytes that are no such record)."""
    text = json.dumps(record).encode()
    for odd in ODD:
        yield f"all is {str(odd)[:20]}", json.dumps(odd).encode()
    for cut in range(0, len(text), 1 + len(text) // 8):
        yield f"cut at {cut}", text[:cut]
        yield f"byte {cut}", text[:cut] + b"\xff" + text[cut + 1 :]
    yield "deep", b"[" * 100_000
    yield "nothing", b""
