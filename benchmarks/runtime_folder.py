"""Parts of `runtime.py` that are whole processes: a folder of photos, and the second start of an optimised model.

python benchmarks/runtime_folder.py timm MODEL WEIGHTS FOLDER      # timm's own way, one JSON line a photo
python benchmarks/runtime_folder.py start MODEL WEIGHTS eager|fast # seconds until the first answer
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, median

COPIES = 4


def proportional_memory(root: int) -> int:
    """Bytes of a process and its descendants, shared pages divided among those that share them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def measured(command: list[str], env: dict[str, str] | None = None) -> tuple[float, int, str]:
    """Seconds, greatest memory (sampled ten times a second) and output of a process."""
    with tempfile.TemporaryFile("w+") as out:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=out, env={**os.environ, **(env or {})})
        while process.poll() is None:
            peak = max(peak, proportional_memory(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        assert process.returncode == 0, command
        out.seek(0)
        return seconds, peak, out.read()


def folder(options: argparse.Namespace, lines: list[str], figures: dict[str, Any]) -> None:
    """JPEG files in, top-5 out, process start included; ours with the artefact ready (`--optimize` made it) and not."""
    import torch

    import vertebra

    names = [n for n in ("dla46x_c", "dla102") if n in options.models]
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary, "photos")
        photos.mkdir()
        for number in range(COPIES):
            for photo in (SHARED / "photos").glob("*.JPEG"):
                shutil.copy(photo, photos / f"{number}_{photo.name}")
        count = len(list(photos.iterdir()))
        for name in names:
            torch.manual_seed(0)
            weights = vertebra.save_model(vertebra.create_model(name), Path(temporary, f"{name}.safetensors"))
            ours = [sys.executable, "-m", "vertebra", "classify", str(photos), "--model", str(weights), "--json"]
            theirs = [sys.executable, __file__, "timm", name, str(weights), str(photos)]
            cold = {"VERTEBRA_CACHE": str(Path(temporary, f"cold-{name}"))}
            warm = {"VERTEBRA_CACHE": str(Path(temporary, "warm"))}
            measured([*ours, "--optimize"], warm)
            runs: dict[str, list[tuple[float, int, str]]] = {"ours": [], "ours, no artefact": [], "timm": []}
            for _ in range(2 if options.quick else 3):
                runs["ours"].append(measured(ours, warm))
                runs["timm"].append(measured(theirs))
                runs["ours, no artefact"].append(measured(ours, cold))
            t = {k: median([seconds for seconds, _, _ in v]) for k, v in runs.items()}
            memory = {k: max(peak for _, peak, _ in v) / 1e6 for k, v in runs.items()}
            mine, peer = (firsts(runs[k][0][2]) for k in ("ours", "timm"))
            same = sum(mine[p] == peer[p] for p in peer) / len(peer)
            figures[f"folder {name}"] = {"seconds": t, "megabytes": memory, "agreement": same}
            shown = "  ".join(f"{k} {v:.1f} s {memory[k]:.0f} MB" for k, v in t.items())
            lines.append(
                f"folder of {count}, {name}: {t['timm'] / t['ours']:.2f}x timm's own way (bar 3x), memory"
                f" {memory['ours'] / memory['timm']:.2f} of it (bar 1); same first class on {same:.1%}  ({shown})"
            )
            print(lines[-1], flush=True)


def firsts(output: str) -> dict[str, int]:
    """File name -> first class."""
    rows = [json.loads(line) for line in output.splitlines()]
    return {Path(row["path"]).name: row["predictions"][0]["index"] for row in rows}


def second_start(options: argparse.Namespace, lines: list[str], figures: dict[str, Any]) -> None:
    """Seconds from the start of a process to the first answer of dla102, cache warm, against eager."""
    import torch

    import vertebra

    with tempfile.TemporaryDirectory() as temporary:
        torch.manual_seed(0)
        weights = vertebra.save_model(vertebra.create_model("dla102"), Path(temporary, "dla102.safetensors"))
        command = [sys.executable, __file__, "start", "dla102", str(weights)]
        env = {"VERTEBRA_CACHE": temporary}
        first = measured([*command, "fast"], env)[0]
        t: dict[str, list[float]] = {"eager": [], "fast": []}
        for _ in range(2 if options.quick else 5):
            for way, seconds in t.items():
                seconds.append(measured([*command, way], env)[0])
    beyond = median(t["fast"]) - median(t["eager"])
    figures["second start"] = {"first": first, "eager": median(t["eager"]), "fast": median(t["fast"])}
    lines.append(
        f"dla102, second start: {beyond:.2f} s beyond eager's {median(t['eager']):.2f} s (bar 2 s); the first took"
        f" {first:.1f} s"
    )
    print(lines[-1], flush=True)


def timm_way(name: str, weights: str, photos: str) -> None:
    """Its transform, a DataLoader of two workers, the eager model; a line a photo, as `vertebra classify --json`."""
    import timm
    import torch
    from safetensors.torch import load_file
    from timm.data import ImageDataset, create_transform, resolve_data_config

    model = timm.create_model(name).eval()
    model.load_state_dict(load_file(weights))
    transform = create_transform(**resolve_data_config({}, model=model))
    data = ImageDataset(photos, transform=transform)
    files = data.filenames(absolute=True)
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2)
    done = 0
    with torch.inference_mode():
        for images, _ in loader:
            best = model(images).softmax(-1).topk(5)
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                top = [{"index": i, "probability": p} for i, p in zip(indices, values, strict=True)]
                print(json.dumps({"path": str(files[done]), "predictions": top}))
                done += 1


def start(name: str, weights: str, way: str) -> None:
    """One answer."""
    import torch

    import vertebra

    model = vertebra.load_model(name, weights=weights).eval()
    run = vertebra.optimize(model) if way == "fast" else model
    with torch.inference_mode():
        run(torch.zeros(1, 3, 224, 224))


if __name__ == "__main__":
    {"timm": timm_way, "start": start}[sys.argv[1]](*sys.argv[2:])
