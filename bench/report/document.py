"""A text of headings, paragraphs, tables and plots, as Markdown and as one HTML page."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator
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
    words: bool = False  #: whether all cells are words, which stand on the left


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
    ids = anchors([block.text for block in blocks if isinstance(block, Heading)])
    left = iter(ids)
    parts = [_html(block, plots, left) for block in blocks]
    parts.insert(2, _contents(blocks, ids))  # after the title and what the page is
    body = "\n".join(parts)
    body = body.replace("🔴", '<span class="loss">●</span>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def anchors(headings: list[str]) -> list[str]:
    """As sites that show Markdown make them: equal ones are numbered."""
    seen: dict[str, int] = {}
    made = []
    for heading in headings:
        name = re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        count = seen[name] = seen.get(name, -1) + 1
        made.append(f"{name}-{count}" if count else name)
    return made


def _contents(blocks: list[Block], ids: list[str]) -> str:
    """Links to all headings but the title."""
    headings = [block for block in blocks if isinstance(block, Heading)]
    links = [
        f'<li class="level{heading.level}"><a href="#{at}">{html.escape(heading.text)}</a></li>'
        for heading, at in zip(headings, ids)
        if heading.level > 1
    ]
    return "<nav><ul>\n" + "\n".join(links) + "\n</ul></nav>"


def _html(block: Block, plots: dict[str, str], ids: Iterator[str]) -> str:
    if isinstance(block, Heading):
        tag = f"h{block.level}"
        return f'<{tag} id="{next(ids)}">{_inline(block.text)}</{tag}>'
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
    words = ' class="words"' if block.words else ""
    return (
        f'{caption}<div class="table"><table{words}>\n<thead><tr>{head}</tr></thead>\n'
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
