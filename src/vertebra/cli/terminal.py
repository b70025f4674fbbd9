"""The one way from a command to a terminal: whatever is printed, nothing in it acts on the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from vertebra.spec import printable


class Terminal(Console):
    """A console that spells out control characters, and takes no markup from anybody's words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A line, or a cell of a table: measured as it will be printed. Of more lines than one, it makes one."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All else that is printed ends here; rich's own colours and cursor movements come after, or are marked so."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(lines, segment.style)
