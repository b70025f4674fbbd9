"""torch's private names may change with any release: they are used in `runtime/`, where one looks for them."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "vertebra"
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "runtime"]
BELOW = {
    "data/draws.py": {"torch.ops.aten._standard_gamma"},
    "data/pixels.py": {"torch.ops.aten._upsample_bilinear2d_aa", "torch.ops.aten._upsample_bicubic2d_aa"},
}
"""Operators whose public face takes no generator, or no memory to write to, in a room that may not import `runtime`."""


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """`nn.modules.module` as torch calls it, where it begins with something imported from there; else ''."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute) and (start := dotted(node.value, known)):
        return f"{start}.{node.attr}"
    return ""


def private_names(code: str) -> set[str]:
    """What a file uses of torch's under a name that begins with an underscore."""
    tree, known, found = ast.parse(code), dict[str, str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        for short, name in names.items():
            if name.partition(".")[0] == "torch":
                known[short] = name if short != name.partition(".")[0] else "torch"
                found |= {name} if private(name) else set()
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return found | {name for node in attributes if (name := dotted(node, known)) and private(node.attr)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_private_name_of_torchs_outside_runtime(path: Path) -> None:
    assert private_names(path.read_text()) == BELOW.get(str(path.relative_to(SOURCE)), set())


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch._C._get_tracing_state()",
        "from torch._dynamo.exc import UserError",
        "from torch import nn\nnn.modules.batchnorm._BatchNorm",
        "from torch.nn.modules import module as m\nm._global_forward_hooks",
        "import torch.ops as o\no.mkldnn._convolution_pointwise",
    ],
)
def test_it_finds_them(code: str) -> None:
    assert private_names(code)
    assert not private_names("import torch\nfrom torch import nn\nself._x = torch.nn.Linear(3, 3).__class__")
