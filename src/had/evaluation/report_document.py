"""A report as blocks of text, tables and pictures, written as Markdown and as one HTML page that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    """Rows that are ours among others'."""
    numbers: Sequence[int] = field(default=())
    """Columns that are set to the right."""


@dataclass(frozen=True)
class Picture:
    """A PNG."""

    path: str
    """Below the report's folder."""
    data: bytes
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines as they are."""

    text: str


Block = Heading | Paragraph | Items | Table | Picture | Code


def as_markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; pictures are links to their files."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Picture(path, _, caption):
            return f"![{caption}]({path})\n\n*{caption}*"
        case Code(text):
            return f"```\n{text}\n```"
        case Table(header, rows, strong, numbers):
            rule = ["---:" if i in numbers else "---" for i in range(len(header))]
            lines = [[_cell(text) for text in header], rule]
            for i, row in enumerate(rows):
                cells = [_cell(text) for text in row]
                lines.append([f"**{cells[0]}**", *cells[1:]] if i in strong else cells)
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    # The marks of the legend would read as emphasis.
    return text.replace("|", "\\|").replace("*", "\\*")


_STYLE = """
:root { --ink: #1b2a33; --soft: #5d6d76; --line: #d9e0e4; --band: #eef5fa; --ours: #0072B2; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: #fff; margin: 0; }
main { max-width: 1560px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, ul { max-width: 78ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-size: .87rem; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td:first-child { white-space: nowrap; }
td:not(.number) { min-width: 6.5rem; }
td:last-child:not(.number) { min-width: 9rem; }
tr.ours td { background: var(--band); }
tr.ours td:first-child { font-weight: 650; color: var(--ours); }
figure { margin: 1rem 0; }
figure img { max-width: min(100%, 1180px); height: auto; }
figcaption { color: var(--soft); font-size: .87rem; max-width: 78ch; }
pre { background: #f5f7f8; padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
nav a { margin-right: 1rem; }
a { color: var(--ours); }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: .7rem; }
  td.number, td:first-child { white-space: normal; }
  td:not(.number) { min-width: 0; }
  th, td { padding: .15rem .35rem; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The report as one page: style and pictures are in it, nothing is fetched."""
    chapters = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = " ".join(f'<a href="#{_anchor(text)}">{html.escape(text)}</a>' for text in chapters)
    body = []
    for block in blocks:
        body.append(_html(block))
        if isinstance(block, Heading) and block.level == 1:
            body.append(f"<nav>{links}</nav>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _anchor(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{_anchor(text)}">{html.escape(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"
        case Picture(_, data, caption):
            code = base64.b64encode(data).decode("ascii")
            shown = html.escape(caption, quote=True)
            image = f'<img src="data:image/png;base64,{code}" alt="{shown}">'
            return f"<figure>{image}<figcaption>{shown}</figcaption></figure>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(header, rows, strong, numbers):
            mark = ['class="number"' if i in numbers else "" for i in range(len(header))]
            head = "".join(f"<th {mark[i]}>{html.escape(text)}</th>" for i, text in enumerate(header))
            lines = [
                f"<tr{' class=' + chr(34) + 'ours' + chr(34) if i in strong else ''}>"
                + "".join(f"<td {mark[j]}>{html.escape(text)}</td>" for j, text in enumerate(row))
                + "</tr>"
                for i, row in enumerate(rows)
            ]
            return (
                f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            )
