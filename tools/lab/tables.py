"""The rows of a table, as Markdown for a file and as a rich table for the console."""

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the Markdown of a table, without a newline at the end.

    Args:
        headings: one for each column; may be empty.
        rows: the cells of each row, in the order of the headings.
    """
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def console_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    caption: str | None = None,
    right_aligned: Collection[str] = (),
) -> Table:
    """Return a table for the console.

    Args:
        headings: one for each column; may be empty.
        rows: the cells of each row, in the order of the headings.
        title: line above the table.
        caption: left-aligned text below the table.
        right_aligned: headings of the right-aligned columns; the others are left-aligned.
    """
    table = Table(title=title, caption=caption, caption_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right_aligned else "left")
    for cells in rows:
        table.add_row(*cells)
    return table
