"""A text of headings, paragraphs, tables and plots, as Markdown and as one HTML page."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Union


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """One paragraph; `code` and [links](to) as in Markdown."""

    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    text: str
    mark: str = ""  #: "win", "loss", "best" or none


@dataclasses.dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Plot:
    name: str  #: of the file plots/NAME.svg
    about: str


Block = Union[Heading, Text, Table, Plot]

_MARKS = {"loss": "🔴 {}", "win": "**{}**", "best": "**{}**", "": "{}"}


def markdown(blocks: list[Block]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append("#" * block.level + " " + block.text)
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Plot):
            parts.append(f"![{block.about}](plots/{block.name}.svg)")
        else:
            parts.append(_markdown_table(block))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.caption, ""] if table.caption else []
    lines.append("| " + " | ".join(table.columns) + " |")
    lines.append("|---" * len(table.columns) + "|")
    for row in table.rows:
        cells = [_MARKS[cell.mark].format(cell.text) if cell.text else "" for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(blocks: list[Block], title: str, plots: dict[str, str]) -> str:
    """One file: styles and plots are in it."""
    style = Path(__file__).with_name("style.css").read_text()
    body = "\n".join(_html(block, plots) for block in blocks)
    body = body.replace("🔴", '<span class="loss">●</span>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, plots: dict[str, str]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Plot):
        label = html.escape(block.about, quote=True)
        return f'<figure role="img" aria-label="{label}">\n{plots[block.name]}\n</figure>'
    head = "".join(f"<th>{_inline(column)}</th>" for column in block.columns)
    rows = "\n".join(
        "<tr>" + "".join(_html_cell(cell) for cell in row) + "</tr>" for row in block.rows
    )
    caption = f"<p>{_inline(block.caption)}</p>\n" if block.caption else ""
    return (
        f'{caption}<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    mark = f' class="{cell.mark}"' if cell.mark else ""
    return f"<td{mark}>{_inline(cell.text)}</td>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', text)
