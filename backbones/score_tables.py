"""Tables of scores for the console."""

from collections.abc import Sequence

from rich.table import Table

_COLUMNS = 3  # pairs of name and number in a table row; fits into 80 characters


def pairs_table(title: str, cells: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and numbers, with three pairs per row."""
    table = Table(title=title, show_header=False)
    for _ in range(min(_COLUMNS, len(cells))):
        table.add_column()
        table.add_column(justify="right")
    for start in range(0, len(cells), _COLUMNS):
        table.add_row(*(text for cell in cells[start : start + _COLUMNS] for text in cell))
    return table
