"""The real registry as plain YAML, and a planted result for any notebook of it."""

import yaml

from lib import claims, paths, provenance
from lib.claims import Results

RAW = yaml.safe_load(paths.CLAIMS.read_text(encoding="utf-8"))
DRAWS = (0.0, 0.01, 0.02, 0.03, 0.04)
NOTEBOOKS = sorted({row["notebook"] for row in RAW})


def results(checkout, name="residual_space", seed=0):
    return Results(notebook=provenance.full_name(name, checkout), profile="kingdom", seed=seed, root=checkout)


def fill(checkout, name, seed, shift=0.0):
    """A complete result: every part on the good side of its rule by .05 (plus `shift`), requirements met."""
    found = results(checkout, name, seed)
    for owner in claims.registry().values():
        if owner.notebook != name:
            continue
        if owner.requires:
            found.requires(owner.id, met=True)
        for part in owner.parts:
            good = (
                part.rule.bound + (-0.05 if part.rule.kind == "at_most" else 0.05)
                if part.rule.bound is not None
                else 0.5
            )
            found.part(part.id, good + shift + 0.001 * seed, 100, controls=DRAWS)
    return found
