"""Text from users' files, as it may be shown on a terminal."""

import re
import sys

# Control characters, line and paragraph separators, what turns the writing direction around, the
# byte order mark, and halves of a character, which stand for bytes that are no UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with what a terminal would obey or cannot show written as an escape.

    Names of files and classes are users' text: an escape code in one could clear the screen, and a
    line break could forge a line of the log.

    Args:
        text: any.
        keep: characters that stay as they are, such as line breaks of our own.
    """

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")

    return _HIDDEN.sub(escaped, text)


def shortened(text: str, limit: int = 1000) -> str:
    """Return text of at most `limit` characters, without its middle where it has more.

    A path of a file may have thousands, and end the line that says what is wrong with it.
    """
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 3 :]}"


def escape_unencodable_output() -> None:
    """Let stdout and stderr write as an escape what their encoding lacks: an ASCII console."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream of text has it, others not
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
