"""What `import timm` finds after `install()`: each test in a process of its own, since modules stay imported."""

import importlib
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vertebra.compat.timm import ABSENT, VERSION, VIEWS

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = "from vertebra.compat import timm as stand_in\nstand_in.install()\n"


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.strip()


def test_packages_that_look_before_they_import_find_it() -> None:
    seen = run(
        INSTALLED + "import importlib.util, importlib.metadata, sys\n"
        "print(importlib.util.find_spec('timm').origin, importlib.metadata.version('timm'), 'torch' in sys.modules)\n"
        "import timm\n"
        "print(timm.__version__, timm.__spec__.name, importlib.util.find_spec('timm').origin)"
    )
    assert seen.splitlines() == [
        f"vertebra.compat.timm {VERSION} False",
        f"{VERSION} timm vertebra.compat.timm",
    ]


def test_the_version_satisfies_what_packages_ask_for_and_says_whose_it_is() -> None:
    assert Requirement("timm>=1.0.23").specifier.contains(VERSION)
    assert "+vertebra" in VERSION


def test_installing_twice_and_uninstalling() -> None:
    seen = run(
        "import sys, importlib.util, importlib.metadata\n"
        "before = list(sys.meta_path)\n" + INSTALLED + "stand_in.install()\n"
        "import timm.data, timm.layers\n"
        "assert len(sys.meta_path) == len(before) + 1\n"
        "stand_in.uninstall()\n"
        "stand_in.uninstall()\n"
        "assert sys.meta_path == before\n"
        "print([n for n in sys.modules if n.partition('.')[0] == 'timm'])\n"
        "print(importlib.metadata.version('timm'), importlib.util.find_spec('timm').origin)"
    )
    loaded, found = seen.splitlines()
    assert loaded == "[]"
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert found == f"{metadata.version('timm')} {spec.origin}"


def test_refuses_when_timm_is_already_imported() -> None:
    seen = run(
        "import sys, types\n"
        "sys.modules['timm'] = real = types.ModuleType('timm')\n"
        "real.__file__ = '/somewhere/timm/__init__.py'\n"
        "before = list(sys.meta_path)\n"
        "from vertebra import VertebraError\n"
        "from vertebra.compat import timm as stand_in\n"
        "try:\n    stand_in.install()\nexcept VertebraError as error:\n    print(error)\n"
        "assert sys.modules['timm'] is real and sys.meta_path == before"
    )
    assert seen == (
        "timm is already imported, from /somewhere/timm/__init__.py"
        "; call vertebra.compat.timm.install() before anything imports timm"
    )


@pytest.mark.parametrize(
    ("statement", "error", "message"),
    [
        ("import timm.optim", "ModuleNotFoundError", "timm.optim is not in vertebra"),
        ("from timm import optim", "ModuleNotFoundError", "timm.optim is not in vertebra"),
        ("from timm.layers import DropPat", "ModuleNotFoundError", "did you mean 'DropPath' or"),
        (
            "from timm.models.vision_transformer import Block",
            "ModuleNotFoundError",
            "timm.models.vision_transformer is",
        ),
        ("import timm; timm.creat_model", "AttributeError", "timm.creat_model is not in vertebra, which stands in"),
        ("from timm.models.resnet import ResNet; ResNet(3)", "VertebraError", "timm.models.resnet.ResNet is not in"),
    ],
)
def test_what_is_not_there_says_so(statement: str, error: str, message: str) -> None:
    seen = run(
        INSTALLED + f"try:\n    {statement}\n"
        "except (ImportError, AttributeError, ValueError) as error:\n    print(type(error).__name__, error)"
    )
    assert seen.startswith(f"{error} ")
    assert message in seen


def test_every_name_leads_to_vertebras_own() -> None:
    seen = run(
        INSTALLED + "import importlib\n"
        "for view, names in stand_in.VIEWS.items():\n"
        "    module = importlib.import_module(view)\n"
        "    for name, home in names.items():\n"
        "        owner, _, own = home.partition(':')\n"
        "        assert getattr(module, name) is getattr(importlib.import_module(owner), own), (view, name)\n"
        "    assert set(names) <= set(dir(module))\n"
        "import timm\n"
        "assert not hasattr(timm, 'optim')\n"
        "from timm.models import dla34\n"
        "print(type(dla34(num_classes=3, device='meta')).__name__, timm.data.create_transform.__module__)"
    )
    assert seen == "Dla vertebra.data.transforms_factory"


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_the_reference_has_every_name(view: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of them are deprecated there, and still what code imports
        theirs = importlib.import_module(view)
    names = {*VIEWS[view], *ABSENT.get(view, ())}
    assert {name for name in names if not hasattr(theirs, name)} == set()


def test_the_page_on_switching_runs() -> None:
    page = (ROOT / "docs" / "timm.md").read_text()
    # ```py, not ```python: these need a process that has not seen timm, which the other examples' does not promise.
    blocks = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    ran = subprocess.run([sys.executable, "-c", blocks[0]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_the_page_lists_every_name() -> None:
    page = (ROOT / "docs" / "timm.md").read_text()
    listed = set(re.findall(r"`([\w.]+)`", page))
    missing = {view for view in VIEWS if view not in listed and view not in ABSENT}
    missing |= {name for view in ("timm", "timm.layers", "timm.utils.model") for name in VIEWS[view]} - listed
    assert missing == set()


def test_a_star_imports_what_is_there() -> None:
    assert run(
        INSTALLED + "from timm.data.constants import *\nfrom timm.layers import *\nfrom timm.models import *\n"
        "print(IMAGENET_DEFAULT_MEAN, DropPath.__name__, create_model.__name__)"
    ).endswith("DropPath create_model")
