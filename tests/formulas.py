r"""Formulas in text as MathJax finds them on nbviewer: between dollars, single or double, and nowhere else.

A dollar that opens no formula would stand on the page as it is, or make a formula of ordinary words. Whether a formula
can be set is asked of matplotlib's TeX parser, which knows most of what MathJax does.
"""

import re

from matplotlib.mathtext import MathTextParser

_PARSER = MathTextParser("path")
_ESCAPED = re.compile(r"\\[$\\]")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$", re.DOTALL)
_CODE = re.compile(r"^(```|~~~).*?^\1|(`+)[^`].*?\2", re.MULTILINE | re.DOTALL)


def without_code(markdown: str) -> str:
    """Markdown without fenced blocks and code spans, in which a dollar is a dollar."""
    return _CODE.sub(" ", markdown)


def problems(text: str) -> list[str]:
    """Every dollar that opens no formula, and every formula that cannot be set, with the words around it."""
    text = _ESCAPED.sub("  ", text)
    found = []
    for match in _FORMULA.finditer(text):
        formula = match[1] or match[2]
        try:
            _PARSER.parse(f"${formula.strip()}$")
        except ValueError as problem:
            found.append(f"cannot be set: {formula!r} ({str(problem).splitlines()[-1]})")
    rest = _FORMULA.sub(" ", text)
    return found + [
        f"raw dollar: {rest[max(0, at.start() - 30) : at.start() + 30]!r}" for at in re.finditer(r"\$", rest)
    ]
