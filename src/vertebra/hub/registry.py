"""Which models there are. One immutable object made from `models.FAMILIES`; nothing registers itself."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vertebra.models import FAMILIES
from vertebra.spec import Family, UnknownNameError, Variant, VertebraError, Weights, did_you_mean


class Registry:
    """Architectures and checkpoints of some families. Two families that claim one name are an error."""

    def __init__(self, families: Iterable[Family]) -> None:
        owners: dict[str, Family] = {}
        tagged: dict[str, dict[str, Weights]] = {}
        for family in families:
            for arch in family.variants:
                if arch in owners:
                    raise VertebraError(f"{arch!r} is declared by {owners[arch].name!r} and by {family.name!r}")
                owners[arch], tagged[arch] = family, {}
            for name, row in family.weights.items():
                arch = name.partition(".")[0]
                if arch not in family.variants:
                    raise VertebraError(f"weights {name!r} belong to no variant of family {family.name!r}")
                tagged[arch][name] = row
        self.renamed: Mapping[str, str] = MappingProxyType(
            {k: v for f in owners.values() for k, v in f.renamed.items()}
        )
        """Names of old -> `arch.tag`."""
        self._owners: Mapping[str, Family] = MappingProxyType(owners)
        self._tagged: Mapping[str, Mapping[str, Weights]] = {a: MappingProxyType(rows) for a, rows in tagged.items()}

    @property
    def archs(self) -> tuple[str, ...]:
        """All architectures, families in the order given."""
        return tuple(self._owners)

    def __contains__(self, arch: str) -> bool:
        return arch in self._owners

    def split(self, name: str) -> tuple[str, str]:
        """`arch.tag` -> (arch, tag) of today; the tag is `''` where none is named. Both must exist."""
        name = self.current(name)
        arch, _, tag = name.partition(".")
        if arch not in self._owners:
            known = [*self._owners, *(n for rows in self._tagged.values() for n in rows)]
            hint = did_you_mean(name, known) or "; `vertebra models` lists all of them"
            raise UnknownNameError(f"unknown model {name!r}{hint}")
        if tag and name not in self._tagged[arch]:
            tags = [n.partition(".")[2] for n in self._tagged[arch]]
            known = ", ".join(map(repr, tags)) or "none"
            raise UnknownNameError(f"unknown tag {tag!r} for {arch}{did_you_mean(tag, tags)}; it has {known}")
        return arch, tag

    def current(self, name: str) -> str:
        """Today's `arch.tag` of a name of old, with a tag behind it or not; of any other, the name itself."""
        arch, dot, tag = name.partition(".")
        if arch in self._owners or arch not in self.renamed:
            return name
        new = self.renamed[arch]
        return f"{new.partition('.')[0]}.{tag}" if dot and tag else new

    def family(self, arch: str) -> Family:
        """The family that declares `arch`."""
        return self._owners[self.split(arch)[0]]

    def variant(self, arch: str) -> Variant:
        """The row of `arch` (a tag behind it is allowed and ignored)."""
        arch = self.split(arch)[0]
        return self._owners[arch].variants[arch]

    def weights(self, arch: str) -> Mapping[str, Weights]:
        """`arch.tag` -> row, the default first."""
        return self._tagged[self.split(arch)[0]]

    def default_weights(self, name: str) -> tuple[str, Weights] | None:
        """The checkpoint that `arch` or `arch.tag` means; None for an architecture without rows."""
        arch, tag = self.split(name)
        rows = self._tagged[arch]
        if tag:
            return f"{arch}.{tag}", rows[f"{arch}.{tag}"]
        return next(iter(rows.items()), None)


REGISTRY = Registry(FAMILIES)
