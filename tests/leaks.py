"""Where a word stands that must not be left behind: the one search of every test that plants such a word."""

import re
import zipfile
from pathlib import Path

_LETTERS = 5  # of the word that are looked for: titles and tables cut long texts
_ENCODED = re.compile(rb"[A-Za-z0-9+/=]{200,}")  # an image in base64, in which any five letters stand by chance


def holds(text: str | bytes, word: str) -> bool:
    """Whether a text holds the word, or outside of encoded images its start, in any case of its letters."""
    content = text.encode() if isinstance(text, str) else text
    start = word[:_LETTERS].lower().encode() in _ENCODED.sub(b" ", content).lower()
    return start or word.lower().encode() in content.lower()


def traces(folder: Path, word: str) -> list[str]:
    """Files under a folder, and members of archives, that hold the word in what is in them or in their names."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if holds(name, word) or holds(path.read_bytes(), word):
            found.append(name)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [f"{name}:{member}" for member in archive.namelist() if holds(archive.read(member), word)]
    return found
