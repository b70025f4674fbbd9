"""A model leaves as a file that answers the same: ONNX, OpenVINO, `torch.export` and AOTInductor packages.

export_model(model, "dla34.onnx")         # written, read back in a new process, compared, then put in place
load("dla34.onnx")(images)                # run by the file's own runtime
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vertebra.export.artefact import Artefact as Artefact
    from vertebra.export.artefact import is_artefact as is_artefact
    from vertebra.export.artefact import load as load
    from vertebra.export.write import Exported as Exported
    from vertebra.export.write import export_model as export_model

_OWNER = {
    "Artefact": "artefact",
    "Exported": "write",
    "export_model": "write",
    "is_artefact": "artefact",
    "load": "artefact",
}

__all__ = ["Artefact", "Exported", "export_model", "is_artefact", "load"]


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'vertebra.export' has no attribute {name!r}")
    return getattr(import_module(f"vertebra.export.{_OWNER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
