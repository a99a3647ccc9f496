"""Sheets as a PDF: one A4 page each, black on white, in the fonts that every reader and printer has.

The same sheets always make the same bytes: there is no date and no identifier in the file but what is on the page.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from agent.views.sheet import Sheet
from agent.views.sheet_layout import EDGE, GAP, HEIGHT, MARGIN, WIDTH, Laid, Row, column_width, laid, top

FONTS = {"mono": ("F1", "Courier-Bold"), "text": ("F2", "Helvetica"), "bold": ("F3", "Helvetica-Bold")}
"""Courier is too thin at eight points for a bad printer, Courier-Bold is not."""


def as_pdf(sheets: Iterable[Sheet]) -> bytes:
    """The sheets as one document. One that is too long for a page in the smallest type goes on on the next."""
    import pydyf  # noqa: PLC0415 - only who prints pays for it

    document = pydyf.PDF()
    document.info["Title"] = pydyf.String("Holdfast runbooks")
    fonts = pydyf.Dictionary()
    for short, name in FONTS.values():
        font = pydyf.Dictionary(
            {"Type": "/Font", "Subtype": "/Type1", "BaseFont": f"/{name}", "Encoding": "/WinAnsiEncoding"}
        )
        document.add_object(font)
        fonts[short] = font.reference
    for sheet in sheets:
        found = laid(sheet)
        count = found.count
        for first in range(0, max(1, len(found.columns)), count):
            stream = pydyf.Stream()
            _draw(stream, found, found.columns[first : first + count], count)
            document.add_object(stream)
            document.add_page(
                pydyf.Dictionary(
                    {
                        "Type": "/Page",
                        "Parent": document.pages.reference,
                        "MediaBox": pydyf.Array([0, 0, WIDTH, HEIGHT]),
                        "Resources": pydyf.Dictionary({"Font": fonts}),
                        "Contents": stream.reference,
                    }
                )
            )
    written = io.BytesIO()
    document.write(written)
    return written.getvalue()


def _draw(stream: Any, found: Laid, columns: Sequence[Sequence[Row]], count: int) -> None:
    stream.set_color_rgb(0, 0, 0)
    _rows(stream, found.head, MARGIN, HEIGHT - EDGE)
    start = top(found.head)
    _rule(stream, start + 3.0)
    for number, rows in enumerate(columns):
        _rows(stream, rows, MARGIN + number * (column_width(count) + GAP), start, flush=True)
    low = EDGE + sum(row.height for row in found.foot)
    _rule(stream, low + 2.0)
    _rows(stream, found.foot, MARGIN, low)


def _rule(stream: Any, height: float) -> None:
    stream.set_line_width(0.6)
    stream.move_to(MARGIN, height)
    stream.line_to(WIDTH - MARGIN, height)
    stream.stroke()


def _rows(stream: Any, rows: Sequence[Row], left: float, height: float, *, flush: bool = False) -> None:
    """Set rows below each other. flush: the first one has no space above it."""
    for index, row in enumerate(rows):
        height -= row.height - (row.above if flush and not index else 0.0)
        stream.begin_text()
        stream.set_font_size(FONTS[row.font][0], row.size)
        stream.set_text_matrix(row.stretch, 0, 0, 1, left + row.indent, height + row.size * 0.25)
        stream.show_text_string(row.text.encode("cp1252", "replace"))
        if row.tail:
            end = left + row.indent + 0.6 * row.size * row.stretch * (len(row.text) + 1)
            stream.set_font_size(FONTS["text"][0], row.size)
            stream.set_text_matrix(1, 0, 0, 1, end, height + row.size * 0.25)
            stream.show_text_string(row.tail.encode("cp1252", "replace"))
        stream.end_text()
