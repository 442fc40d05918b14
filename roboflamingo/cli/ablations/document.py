"""Sections of a document that a command writes, each between two markers.

<!-- ablation head: written by `roboflamingo ablate head --write docs/results.md` -->
...
<!-- end of ablation head -->
"""

from __future__ import annotations

import re
from pathlib import Path

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_text

HEADING = "## Ablations"
INTRODUCTION = (
    "One command makes each section ([recipes.md](recipes.md) says how): it collects, trains, evaluates, and replaces "
    "the text between its markers."
)


def put_section(path: Path, name: str, text: str) -> None:
    """Puts a section in the place of the one of that name, or after the last one, or at the document's end.

    Args:
        path: of the document, in Markdown.
        name: of the ablation.
        text: of the section.

    Raises:
        UserError: the document is missing, or its markers are damaged. Names the line.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; --write takes a document in Markdown")
    document = path.read_text(encoding="utf-8")
    begin, end = f"<!-- ablation {name}: ", f"<!-- end of ablation {name} -->"
    section = f"{begin}written by `roboflamingo ablate {name} --write {path.as_posix()}` -->\n{text.strip()}\n{end}"
    begins, ends = document.count(begin), document.count(end)
    if (begins, ends) not in ((0, 0), (1, 1)) or (begins and document.index(begin) > document.index(end)):
        raise UserError(
            f"{path} has {begins} lines that begin with {begin!r} and {ends} lines {end!r}; there must be one of "
            "each, in this order, or none"
        )
    if begins:
        first, last = document.index(begin), document.index(end) + len(end)
        document = document[:first] + section + document[last:]
    else:
        document = _with_new(document, section)
    write_text(path, document)


def _with_new(document: str, section: str) -> str:
    """The document with a section more, after the other ablations."""
    others = list(re.finditer(r"<!-- end of ablation .*? -->\n?", document))
    if others:
        place = others[-1].end()
        return f"{document[:place].rstrip()}\n\n{section}\n{document[place:]}"
    if HEADING not in document.splitlines():
        return f"{document.rstrip()}\n\n{HEADING}\n\n{INTRODUCTION}\n\n{section}\n"
    after = document.index(HEADING) + len(HEADING)
    following = document.find("\n## ", after)
    place = len(document) if following < 0 else following
    return f"{document[:place].rstrip()}\n\n{section}\n{document[place:]}"
