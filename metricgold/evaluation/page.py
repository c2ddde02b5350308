"""The frame of a report's page: style sheet and HTML builders; it refers to no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root{--page:#f6f5f1;--card:#fff;--ink:#23221e;--soft:#6c6a62;--line:#e2dfd5;--gold:#a87808;
--good:#27734a;--bad:#b03a2e;--series-0:#b8860b;--series-1:#5b7a99;--series-2:#8a5a83;
--series-3:#4f8a5b;--series-4:#b5524a;--series-5:#4a4840;--series-6:#2b8a96;--series-7:#c77d9f;
--series-8:#93a13a;--series-9:#a39c8b}
@media(prefers-color-scheme:dark){:root{--page:#191815;--card:#232220;--ink:#ece9e0;--soft:#a5a196;
--line:#3a3833;--gold:#e0b040;--good:#6fc08f;--bad:#ee8576;--series-0:#e0b040;--series-1:#86a9cc;
--series-2:#c08fb8;--series-3:#86c294;--series-4:#e08a80;--series-5:#d5d1c4;--series-6:#5fc0cc;--series-7:#e3a8c3;
--series-8:#c3d06a;--series-9:#8a8474}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.9rem;line-height:1.2;margin:.4em 0 .2em}
h2{font-size:1.25rem;margin:2.2em 0 .5em}
h3{font-size:1rem;margin:1.2em 0 .3em}
p{margin:.3em 0 .8em;max-width:70ch}
.soft,figcaption,caption{color:var(--soft);font-size:.88rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:12px 14px}
.tile b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-weight:600}
th:first-child,td:first-child{text-align:left}
th.text,td.text{text-align:left}td.text{white-space:normal;min-width:11em}
td small{color:var(--soft);display:block;font-size:.78rem}td small.yes{color:var(--good)}
td small.no{color:var(--bad)}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px}
.grid2+p,.grid2+.scroll,section>figure+figure{margin-top:14px}
figure{margin:0}
.card figcaption{margin-bottom:4px}
figure img{width:100%;height:auto;display:block;border-radius:8px;border:1px solid var(--line)}
svg text{font-size:12px;fill:var(--soft)}
svg{width:100%;height:auto;display:block}
svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{stroke-width:2;stroke-linejoin:round}
svg polyline.faint{stroke-width:1;opacity:.3}
svg polygon{fill-opacity:.16;stroke-width:1.5;stroke-linejoin:round}
canvas.points{display:block;width:100%;height:340px;border-radius:8px;touch-action:none;cursor:grab}
.buttons{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:8px}
.buttons button{font:inherit;font-size:.85rem;color:inherit;background:var(--page);padding:3px 10px;
border:1px solid var(--line);border-radius:14px;cursor:pointer}
.buttons button[aria-pressed=true]{border-color:var(--gold);color:var(--gold);font-weight:600}
code{font-size:.85rem;overflow-wrap:anywhere}
@media(max-width:600px){th,td{padding:6px 8px}th:first-child,td:first-child{white-space:normal;
min-width:7.5em}h1{font-size:1.5rem}svg text{font-size:14px}}
"""


_TEXT_CELL = '<td class="text">'


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways on a phone; cells are HTML (escape them), header is text."""
    prose = [cell.startswith(_TEXT_CELL) for cell in rows[0]] if rows else []
    head = "".join(
        f'<th class="text">{escape(h)}</th>' if left else f"<th>{escape(h)}</th>"
        for h, left in zip(header, prose or [False] * len(header), strict=True)
    )
    lines = ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(content: str) -> str:
    return content if content.startswith("<td") else f"<td>{content}</td>"


def text_cell(content: str) -> str:
    """A left-aligned cell of prose that wraps."""
    return f"{_TEXT_CELL}{escape(content)}</td>"


def tile(value: str, label: str) -> str:
    """A headline figure."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def chart_card(caption: str, svg: str) -> str:
    """A chart with its heading."""
    return f'<figure class="card"><figcaption>{escape(caption)}</figcaption>{svg}</figure>'


def picture(path: Path, caption: str) -> str:
    """A PNG embedded in the page."""
    return embedded(path.read_bytes(), "png", caption)


def embedded(encoded: bytes, kind: str, caption: str) -> str:
    """A picture embedded in the page; ``kind`` is its format, such as ``jpeg``."""
    data = base64.b64encode(encoded).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    """A headed block; empty parts are dropped, and without any part the whole block is."""
    content = "\n".join(p for p in parts if p)
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""
