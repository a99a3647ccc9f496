"""Sheets as one HTML page that prints like the PDF: one A4 each, the same lines, no script and nothing to fetch."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from agent.views.sheet import Sheet
from agent.views.sheet_layout import EDGE, LEADING, MARGIN, Laid, Row, laid

STYLE = f"""
@page {{ size: A4; margin: {EDGE:g}pt {MARGIN:g}pt; }}
html {{ background: #fff; color: #000; }}
section {{ break-after: page; max-width: 180mm; margin: 0 auto 2em; }}
section:last-child {{ break-after: auto; }}
h1 {{ font: bold 15pt/{LEADING} Helvetica, Arial, sans-serif; margin: 0; }}
p {{ font: 1em/{LEADING} Helvetica, Arial, sans-serif; margin: 2pt 0 0; white-space: pre-wrap; }}
h2 {{ font: bold 1.05em/{LEADING} Helvetica, Arial, sans-serif; margin: .55em 0 0; break-after: avoid; }}
pre {{ font: bold 1em/{LEADING} "Courier New", Courier, monospace; margin: 1pt 0 0 8pt; }}
i {{ font: normal 1em/{LEADING} Helvetica, Arial, sans-serif; letter-spacing: 0; }}
.body {{ border-top: .6pt solid; border-bottom: .6pt solid; margin-top: 4pt; padding: 2pt 0 4pt; column-gap: 16pt; }}
.said {{ margin: 0 0 0 8pt; }}
.foot {{ font-size: 7pt; }}
"""


def as_html(sheets: Iterable[Sheet]) -> str:
    """The sheets as one document."""
    found = list(sheets)
    title = found[0].title if len(found) == 1 else "Holdfast runbooks"
    body = "\n".join(_section(sheet, laid(sheet)) for sheet in found)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</html>"
    )


def _section(sheet: Sheet, found: Laid) -> str:
    lines = [f'<section style="font-size: {found.size:g}pt">', f"<h1>{escape(sheet.title)}</h1>"]
    lines.append(f"<p>{escape('  ·  '.join(f'{label}: {words}' for label, words in sheet.about))}</p>")
    lines += [f"<p><b>{escape(label)}</b>: {escape(words)}</p>" for label, words in sheet.before]
    lines.append(f'<div class="body" style="column-count: {found.count}">')
    lines += _rows([row for column in found.columns for row in column])
    lines += ["</div>", f'<p class="foot">{escape(sheet.foot)}</p>', "</section>"]
    return "\n".join(lines)


def _rows(rows: list[Row]) -> Iterable[str]:
    """Rows of one kind that follow each other are one element."""
    tags = {"mono": ("<pre>", "</pre>"), "text": ('<p class="said">', "</p>"), "bold": ("<h2>", "</h2>")}
    now: list[Row] = []
    for row in [*rows, None]:
        if row is not None and now and row.font == now[0].font and not (row.font == "bold" and row.above):
            now.append(row)
            continue
        if now:
            start, end = tags[now[0].font]
            separator = " " if now[0].font == "bold" else "\n"
            if now[0].stretch != 1.0:
                start = f'<pre style="letter-spacing: {0.6 * now[0].stretch - 0.6:.3f}em">'
            yield f"{start}{separator.join(map(_words, now))}{end}"
        now = [row] if row is not None else []


def _words(row: Row) -> str:
    return escape(row.text) + (f" <i>{escape(row.tail)}</i>" if row.tail else "")
