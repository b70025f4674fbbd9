"""Every Python example of docs/ runs: the blocks of a page in their order, as one module."""

import re
import runpy
from pathlib import Path

import pytest

from vertebra.data.eval_reader import TOLERANCE
from vertebra.engine.speed import FEW, LONG
from vertebra.runtime.verify import BOUNDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def as_module(page: str) -> str:
    """The page with everything but its Python blocks commented out: a traceback names the page's own lines."""
    lines, inside = list[str](), False
    for line in page.splitlines():
        inside = inside and line != "```"
        lines.append(line if inside else f"# {line}")
        inside = inside or line == "```python"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [p for p in PAGES if "\n```python\n" in p.read_text()], ids=lambda p: p.stem)
def test_examples_run(page: Path, tmp_path: Path, unchecked_shapes: None) -> None:
    module = tmp_path / f"{page.stem}.py"
    module.write_text(as_module(page.read_text()))
    runpy.run_path(str(module), run_name=page.stem)


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *PAGES], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_page_on_speed_states_the_bounds_that_are_kept() -> None:
    page = (ROOT / "docs" / "fast.md").read_text()
    rows = [f"| {name} | {b.cosine:g} | {b.agreement:.0%} | {b.margin:g} |" for name, b in BOUNDS.items()]
    assert [row for row in rows if row in page] == rows
    assert f"probabilities stay within {TOLERANCE:g} " in page
    assert f"From {FEW} on, an artefact" in page
    assert f"another {LONG:g} seconds" in page
