"""Escaping and shortening of untrusted text before it is printed on a terminal."""

import re
import sys

# Control characters, line and paragraph separators, marks that change the writing direction, the
# byte order mark, and lone surrogates, which stand for bytes that are not UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with control and other invisible characters escaped.

    Names of files and classes come from users' files: an escape sequence in one could clear the
    screen, and a line break could fake a log line.

    Args:
        text: any text.
        keep: characters that are not escaped, such as line breaks.
    """

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")

    return _HIDDEN.sub(escaped, text)


def one_line(text: object) -> str:
    """Return `text`, such as an error, with each run of spaces and line breaks as one space."""
    return " ".join(str(text).split())


def shortened(text: str, limit: int = 1000) -> str:
    """Return `text` with its middle dropped if it is longer than about `limit` characters.

    The end is kept because a message may start with a very long path and end with the problem.
    """
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 3 :]}"


def escape_unencodable_output() -> None:
    """Make stdout and stderr escape characters that their encoding lacks (ASCII consoles)."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # only text streams have it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
