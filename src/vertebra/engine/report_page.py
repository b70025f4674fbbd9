"""`report.html`: one page that needs nothing beside it. Names in it are other people's: all are escaped, none runs."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vertebra.engine.report_charts import Line, chart
from vertebra.spec import printable

SQUARE = 40
"""Classes up to which the confusion matrix can be read; above, the pairs most often confused stand in its place."""
PAIRS = 30
BESIDE = 14
"""Classes up to which matrix and table fit beside each other."""
SHOWN = 50
"""Classes of which the table is open; of more, the worst of them are shown, and the rest opens on request."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16202c;--dim:#647284;--rule:#e3e7ec;--a:37 99 235;
--b:217 119 6;--c:5 150 105;--bad:220 38 38}
@media(prefers-color-scheme:dark){:root{--bg:#0e1319;--card:#161d26;--ink:#e5ebf2;--dim:#93a1b3;--rule:#28323f;
--a:96 165 250;--b:251 176 64;--c:52 211 153;--bad:248 113 113}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:20px 16px 48px}h1{font-size:26px;line-height:1.25;margin:8px 0 2px;
overflow-wrap:anywhere}h2{font-size:17px;margin:0 0 12px}.sub,.note{color:var(--dim);margin:0 0 16px;
overflow-wrap:anywhere}.note{margin:-8px 0 12px;font-size:13px}section{background:var(--card);
border:1px solid var(--rule);border-radius:12px;padding:16px;margin-top:16px}
.tiles,.charts,.photos{display:grid;gap:12px}.tiles{grid-template-columns:repeat(auto-fit,minmax(125px,1fr))}
.tiles div{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:12px 16px}
.tiles b{display:block;font-size:25px;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tiles span{color:var(--dim);font-size:13px}.charts{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr))}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
svg .t{font-weight:600;font-size:12.5px;fill:var(--ink)}svg .k{font-size:12px;font-weight:600}.g{stroke:var(--rule)}
.b{stroke:var(--dim);stroke-dasharray:3 3}.l{fill:none!important;stroke-width:2;stroke-linejoin:round}
.l0{stroke:rgb(var(--a));fill:rgb(var(--a))}.l1{stroke:rgb(var(--b));fill:rgb(var(--b))}
.l2{stroke:rgb(var(--c));fill:rgb(var(--c))}svg text.l0{fill:rgb(var(--a))}svg text.l1{fill:rgb(var(--b))}
svg text.l2{fill:rgb(var(--c))}svg text.k{stroke:none}
.photos{grid-template-columns:repeat(auto-fill,minmax(104px,1fr))}figure{margin:0;font-size:12.5px;line-height:1.35;
min-width:0}figure img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:8px;display:block;margin-bottom:5px;
background:var(--rule)}figcaption span{display:-webkit-box;-webkit-box-orient:vertical;
-webkit-line-clamp:2;overflow:hidden;overflow-wrap:anywhere}figcaption i{font-style:normal;
color:var(--dim);display:block;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}.no{color:rgb(var(--bad));font-weight:600}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--dim);text-align:left}td,th{padding:4px 10px 4px 0;white-space:nowrap}
.num td+td,.num th+th{text-align:right}.rows{width:100%}.rows tr{border-top:1px solid var(--rule)}
.rows td:first-child{max-width:220px;overflow:hidden;text-overflow:ellipsis}
.bar{display:inline-block;width:70px;height:8px;border-radius:4px;background:var(--rule);margin-right:8px;
vertical-align:middle}.bar+span{display:inline-block;min-width:46px}.bar i{display:block;height:100%;border-radius:4px;
background:rgb(var(--a));width:calc(var(--v)*100%)}.two{display:grid;gap:0 16px}
@media(min-width:900px){.two{grid-template-columns:auto minmax(400px,1fr)}}.two section{min-width:0}
.cm{font-size:12px}.cm td,.cm th{padding:0}.cm td{min-width:30px;height:30px;text-align:center;
border:1px solid var(--card);background:rgb(var(--bad)/calc(var(--v)*.85));border-radius:4px}
.cm td.d{background:rgb(var(--a)/calc(var(--v)*.75))}.cm td.z{background:var(--bg);color:transparent}
.cm tbody th{padding-right:8px;text-align:right;max-width:150px;overflow:hidden;text-overflow:ellipsis}
.cm thead th{writing-mode:vertical-rl;transform:rotate(180deg);padding-top:6px;max-height:130px;overflow:hidden;
text-overflow:ellipsis;vertical-align:bottom}.facts td{white-space:normal;overflow-wrap:anywhere;vertical-align:top}
.facts th{vertical-align:top;padding-right:18px}summary{cursor:pointer;color:var(--dim);margin-top:8px}
pre{overflow-x:auto;font:12px/1.5 ui-monospace,monospace;margin:8px 0 0}
"""


@dataclass(frozen=True, slots=True)
class Photo:
    """A small picture and what to say beneath it."""

    jpeg: bytes
    caption: str
    wrong: str = ""
    """What the model said, where that is wrong."""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that a report shows; what is empty is left out."""

    title: str
    status: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Mapping[str, float]]
    """One an epoch, as in metrics.csv."""
    best: int
    """The epoch (from 1) that `record` is of; 0: none yet."""
    record: Mapping[str, Any]
    """As in validation.json."""
    mistakes: Sequence[Photo]
    samples: Sequence[Photo]
    settings: str


def render(page: Page) -> str:
    """The whole document."""
    sections = [
        _curves(page),
        _photos(
            "Worst mistakes", "Wrong, and surest of it: the true class, what the model said, the file.", page.mistakes
        ),
        _both(_confusion(page.record), _classes(page.record), len(page.record.get("classes", []))),
        _photos("What the network sees", "Training images, augmented as the recipe says.", page.samples),
        _facts(page),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{safe(page.title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{safe(page.title)}</h1><p class="sub">{safe(page.status)}</p>{_tiles(page)}'
        f"{''.join(sections)}</main></body></html>\n"
    )


def safe(text: object) -> str:
    """Text as it may stand anywhere in the page: escaped, and what cannot be seen spelt out."""
    return html.escape(printable(str(text)))


def _tiles(page: Page) -> str:
    names = {"top1": "top-1", "top5": "top-5", "map": "mean average precision", "macro_f1": "macro F1"}
    found = [(f"{page.record[k]:.1%}", name) for k, name in names.items() if _number(page.record.get(k))]
    if _number(page.record.get("ece")):
        found.append((f"{page.record['ece']:.1%}", "calibration error"))
    if _number(page.record.get("loss")):
        found.append((f"{page.record['loss']:.3f}", "validation loss"))
    if page.rows:
        found.append((f"{page.rows[-1]['images_per_s']:,.0f}", "training images/s"))
    return f'<div class="tiles">{"".join(f"<div><b>{v}</b><span>{n}</span></div>" for v, n in found)}</div>'


def _both(confusion: str, classes: str, count: int) -> str:
    """Side by side where there is room."""
    beside = confusion and classes and count <= BESIDE
    return f'<div class="two">{confusion}{classes}</div>' if beside else confusion + classes


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and value == value


def _curves(page: Page) -> str:
    if not page.rows:
        return _section("Curves", '<p class="sub">No epoch has ended yet.</p>')
    epochs = [int(row["epoch"]) for row in page.rows]

    def lines(**names: str) -> list[Line]:
        return [Line(name, [row[k] for row in page.rows]) for k, name in names.items() if k in page.rows[0]]

    charts = [
        chart("Loss", epochs, lines(train_loss="training", val_loss="validation"), best=page.best),
        chart(
            "Validation",
            epochs,
            lines(val_top1="top-1", val_map="mAP", val_macro_f1="macro F1"),
            best=page.best,
            percent=True,
        ),
        chart("Learning rate", epochs, lines(lr="rate"), best=page.best),
    ]
    note = f'<p class="note">By epoch; the dashed line is the best one, {page.best}.</p>'
    return _section("Curves", f'{note}<div class="charts">{"".join(f"<div>{c}</div>" for c in charts)}</div>')


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _photos(title: str, note: str, photos: Sequence[Photo]) -> str:
    if not photos:
        return ""
    figures = []
    for photo in photos:
        wrong = f'<span class="no" title="{safe(photo.wrong)}">said {safe(photo.wrong)}</span>' if photo.wrong else ""
        name = f'<i title="{safe(photo.name)}">{safe(photo.name.rpartition("/")[2])}</i>' if photo.name else ""
        figures.append(
            f'<figure><img alt="" src="data:image/jpeg;base64,{b64encode(photo.jpeg).decode()}">'
            f'<figcaption><span title="{safe(photo.caption)}">{safe(photo.caption)}</span>'
            f"{wrong}{name}</figcaption></figure>"
        )
    return _section(title, f'<p class="note">{note}</p><div class="photos">{"".join(figures)}</div>')


def _confusion(record: Mapping[str, Any]) -> str:
    matrix: list[list[int]] = record.get("confusion") or []
    names = [row["name"] for row in record.get("classes", [])]
    if not matrix or len(matrix) != len(names):
        return ""
    return _square(matrix, names) if len(names) <= SQUARE else _pairs(matrix, names)


def _square(matrix: list[list[int]], names: list[str]) -> str:
    head = "".join(f"<th>{safe(name)}</th>" for name in names)
    body: list[str] = []
    for i, row in enumerate(matrix):
        cells: list[str] = []
        for j, count in enumerate(row):
            kind = ' class="d"' if i == j and count else ' class="z"' if not count else ""
            what = f"{names[i]} taken for {names[j]}: {count} of {sum(row)}"
            cells.append(f'<td{kind} style="--v:{count / max(1, sum(row)):.2f}" title="{safe(what)}">{count}</td>')
        body.append(f"<tr><th>{safe(names[i])}</th>{''.join(cells)}</tr>")
    note = '<p class="note">Rows: true classes; columns: answers; colour: share of the row.</p>'
    table = f'<table class="cm"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return _section("Confusion", f'{note}<div class="wide">{table}</div>')


def _pairs(matrix: list[list[int]], names: list[str]) -> str:
    found = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
    rows = "".join(
        f"<tr><td>{safe(names[i])}</td><td>{safe(names[j])}</td>"
        f"<td>{_bar(n / max(1, sum(matrix[i])))} {n:,} of {sum(matrix[i]):,}</td></tr>"
        for n, i, j in sorted(found, key=lambda pair: (-pair[0], pair[1:]))[:PAIRS]
    )
    head = "<tr><th>true</th><th>answer</th><th>images</th></tr>"
    return _section("Most confused", f'<div class="wide"><table class="rows">{head}{rows}</table></div>')


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="--v:{share:.2f}"></i></span>'


def _classes(record: Mapping[str, Any]) -> str:
    rows = [row for row in record.get("classes", []) if row["images"]]
    if not rows:
        return ""
    keys = [key for key in ("recall", "precision", "f1", "ap") if key in rows[0]]
    first = keys[0]
    rows.sort(key=lambda row: (row[first] if row[first] is not None else 2, row["name"]))
    head = "".join(f"<th>{key}</th>" for key in keys)

    def line(row: Mapping[str, Any]) -> str:
        shares = ["–" if row[k] is None else f"{row[k]:.1%}" for k in keys]
        shares[0] = f"{_bar(row[first] or 0)}<span>{shares[0]}</span>"
        cells = "".join(f"<td>{share}</td>" for share in shares)
        return f'<tr><td title="{safe(row["name"])}">{safe(row["name"])}</td>{cells}<td>{row["images"]:,}</td></tr>'

    def table(some: Sequence[Mapping[str, Any]]) -> str:
        lines = "".join(map(line, some))
        top = f"<tr><th>class</th>{head}<th>images</th></tr>"
        return f'<div class="wide"><table class="rows num">{top}{lines}</table></div>'

    rest = rows[SHOWN:]
    more = f"<details><summary>{len(rest):,} more classes</summary>{table(rest)}</details>" if rest else ""
    return _section("Classes", f'<p class="note">The worst first.</p>{table(rows[:SHOWN])}{more}')


def _facts(page: Page) -> str:
    rows = "".join(f"<tr><th>{safe(name)}</th><td>{safe(value)}</td></tr>" for name, value in page.facts)
    text = "".join(f"{safe(line)}\n" for line in page.settings.splitlines())
    settings = f"<details><summary>All settings</summary><pre>{text}</pre></details>"
    return _section("The run", f'<table class="facts">{rows}</table>{settings}')
