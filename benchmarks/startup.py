"""Time until a model stands ready: `create_model(pretrained)` from a local file, against timm's in the same run.

    python benchmarks/startup.py

Bars: at least 5x faster on dla102 and deit_base_distilled_patch16_224; `import vertebra` (with `create_model`) at most
100 ms beyond `import torch`; `vertebra --help` under 0.5 s and without torch.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import timm
from common import interleave, keep, median

import vertebra

MODELS = ("dla102", "deit_base_distilled_patch16_224")


def creation(folder: Path) -> tuple[list[str], dict[str, float]]:
    """Seconds of both libraries on the same file, and their ratio."""
    lines, figures = list[str](), dict[str, float]()
    for name in MODELS:
        file = vertebra.save_model(vertebra.create_model(name), folder / f"{name}.safetensors")
        overlay = {"file": str(file)}

        def ours(name: str = name, overlay: dict[str, str] = overlay) -> object:
            return vertebra.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)

        def theirs(name: str = name, overlay: dict[str, str] = overlay) -> object:
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)

        times = interleave({"ours": ours, "timm": theirs}, rounds=7)
        a, b = median(times["ours"]), median(times["timm"])
        figures[name] = b / a
        lines.append(f"{name:<34} ours {a * 1e3:7.1f} ms   timm {b * 1e3:7.1f} ms   {b / a:5.1f}x faster (bar 5x)")
    return lines, figures


def process(*command: str) -> None:
    """A whole process, from start to end."""
    subprocess.run(command, check=True, capture_output=True)


def imports() -> tuple[list[str], dict[str, float]]:
    """What the import costs beyond torch's own, and what `--help` takes."""
    script = str(Path(sys.executable).with_name("vertebra"))
    commands = {
        "torch": (sys.executable, "-c", "import torch"),
        "import": (sys.executable, "-c", "import torch, vertebra"),
        "create_model": (sys.executable, "-c", "import torch, vertebra; vertebra.create_model"),
        "help": (script, "--help"),
    }
    times = interleave({name: partial(process, *command) for name, command in commands.items()}, rounds=7)
    seconds = {name: median(taken) for name, taken in times.items()}
    costs = {name: seconds[name] - seconds["torch"] for name in ("import", "create_model")} | {"help": seconds["help"]}
    lines = [
        f"import vertebra beyond torch        {costs['import'] * 1e3:7.1f} ms (bar 100 ms)",
        f"  with create_model loaded          {costs['create_model'] * 1e3:7.1f} ms",
        f"vertebra --help                     {costs['help'] * 1e3:7.1f} ms (bar 500 ms)",
    ]
    return lines, costs


def main() -> None:
    """Run, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        lines, figures = creation(Path(folder))
    more, costs = imports()
    keep("startup", lines + more, {"speedup": figures, "seconds": costs})


if __name__ == "__main__":
    main()
