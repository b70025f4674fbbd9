"""Time until a model stands ready: `create_model(pretrained)` from the hub's cache and a local file, against timm's.

    python benchmarks/startup.py

Bars, on dla102 and deit_base_distilled_patch16_224: at least 5x faster from the hub's cache, whose files stay mapped,
and 3x from a user's file, which is read into memory of the model's own; `import vertebra` (with `create_model`) at most
100 ms beyond `import torch`; `vertebra --help` under 0.5 s and without torch.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported: its cache is all that is asked

import timm
from common import interleave, keep, median

import vertebra
from vertebra.spec.files import sha256

MODELS = ("dla102", "deit_base_distilled_patch16_224")


def cached(file: Path, cache: Path, repo: str) -> None:
    """Lay a file into a hub cache as huggingface_hub does: under its hash, and linked under its name."""
    commit, base = "0" * 40, cache / f"models--{repo.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (base / folder).mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    blob = base / "blobs" / sha256(file)
    shutil.copyfile(file, blob)
    (base / "snapshots" / commit / "model.safetensors").symlink_to(blob)


def creation(folder: Path) -> tuple[list[str], dict[str, float]]:
    """Seconds of both libraries on the same file, and their ratio."""
    lines, figures = list[str](), dict[str, float]()
    for name in MODELS:
        file = vertebra.save_model(vertebra.create_model(name), folder / f"{name}.safetensors")
        cached(file, folder / "hub", f"me/{name}")
        sources: dict[str, tuple[float, dict[str, object]]] = {
            "hub's cache": (5, {"hf_hub_id": f"me/{name}", "hf_hub_filename": "model.safetensors", "url": ""}),
            "user's file": (3, {"file": str(file)}),
        }
        for source, (bar, overlay) in sources.items():
            given = {"pretrained": True, "pretrained_cfg_overlay": overlay, "cache_dir": folder / "hub"}
            calls = {
                "ours": partial(vertebra.create_model, name, **given),
                "timm": partial(timm.create_model, name, **given),
            }
            times = interleave(calls, rounds=7)
            a, b = median(times["ours"]), median(times["timm"])
            figures[f"{name}, {source}"] = b / a
            lines.append(
                f"{name:<32} {source}  ours {a * 1e3:6.1f} ms   timm {b * 1e3:6.1f} ms   {b / a:5.1f}x (bar {bar}x)"
            )
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
