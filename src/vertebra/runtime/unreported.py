"""OpenVINO and NNCF without the reports that they send.

`openvino_telemetry` comes with both, asks nobody, and writes to Google Analytics: when OpenVINO is imported, when a
model is converted, when one is quantised. Both do without where it cannot be imported.
"""

import sys
import threading
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

_TELEMETRY = "openvino_telemetry"
_importing = threading.Lock()


def unreported(name: str) -> Any:
    """Import `openvino` or `nncf`. Raises ModuleNotFoundError where it is not installed."""
    with _importing:
        if name in sys.modules or _TELEMETRY in sys.modules:  # the latter: whoever uses them beside us lets them report
            return import_module(name)
        sys.modules[_TELEMETRY] = ModuleType(_TELEMETRY)  # empty: what they look for in it is not there
        try:
            return import_module(name)
        finally:
            del sys.modules[_TELEMETRY]


@cache
def openvino_core() -> Any:
    """The process's one `openvino.Core`, never released. Raises ModuleNotFoundError where OpenVINO is not installed.

    Its CPU plugin gives the thread that makes it another stack for signals, and takes the former one back when it goes.
    Of two that go in another order than last in, first out, one that is unmapped remains: the next Ctrl-C or finished
    child then ends the process without a word.
    """
    return unreported("openvino").Core()
