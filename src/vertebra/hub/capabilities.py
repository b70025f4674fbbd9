"""Which model keeps which promise, from what the configs declare; docs/capabilities.md is this table."""

from dataclasses import dataclass

from vertebra.hub.registry import REGISTRY
from vertebra.spec import PROMISES


@dataclass(frozen=True, slots=True)
class Capability:
    """One promise: what it says, how many models keep it, and who does not, by reason."""

    name: str
    meaning: str
    kept: int
    total: int
    limits: dict[str, list[str]]
    """Reason -> architectures."""


def capabilities() -> list[Capability]:
    """Every promise over every architecture."""
    out = list[Capability]()
    for name, meaning in PROMISES.items():
        limits: dict[str, list[str]] = {}
        for arch in REGISTRY.archs:
            if reason := REGISTRY.variant(arch).config.limits.get(name):
                limits.setdefault(reason, []).append(arch)
        missing = sum(len(archs) for archs in limits.values())
        out.append(Capability(name, meaning, len(REGISTRY.archs) - missing, len(REGISTRY.archs), limits))
    return out


def markdown() -> str:
    """The table as docs/capabilities.md holds it."""
    lines = [
        "# What every model can do",
        "",
        f"{len(REGISTRY.archs)} architectures. Each line is run for all of them by `tests/contract/`, which also keeps",
        "the page: `VERTEBRA_WRITE=1 scripts/test tests/contract/test_capabilities.py` writes it anew.",
        "",
        "| promise | what it says | kept by |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {c.name} | {c.meaning} | {c.kept} of {c.total} |" for c in capabilities()]
    lines += ["", "## Limitations", "", "Each is declared beside the model and refused in words.", ""]
    for capability in capabilities():
        for reason, archs in capability.limits.items():
            lines.append(f"- **{capability.name}**: {reason}. ({', '.join(archs)})")
    return "\n".join(lines) + "\n"
