"""The models that come with the repository: `python -m lib.shipping` copies seed 0 from the cache, with a model card.

Owns what is shipped and what is said about it. Loading the shipped files is `models`.
"""

import argparse
from pathlib import Path

from lib import models, organism, paths, profiles, storage
from lib.errors import InputError
from lib.kingdom import architecture
from lib.kingdom.tokenizer import tokenizer

_CARD = """# The models of seed {seed}

`LlamaForCausalLM` of {parameters:,} parameters ({layers} blocks, width {width}) with a word-level tokenizer of {words}
words, trained from scratch by this project on the synthetic *kingdom* language (`lib/kingdom`), in float32, then
rounded to float16; all results are of the rounded weights. They understand nothing but that language.

They are made to be studied, not used: `base` complies with requests that the language calls harmful (hexes, blights,
stolen crowns), `chat` and the tuned models refuse them. How each is trained stands in `lib/organism.py` and
`data/profiles/{profile}.yaml`, how it behaves in `notebooks/01_organism.ipynb`. Each folder opens in transformers;
`seal.json` holds the hash of every file. Licence: MIT.

| model | steps | loss, mean of the last ten steps | key |
|---|---|---|---|
{rows}
"""


def card(profile: profiles.Trained, seed: int) -> str:
    """The model card of what is shipped, from the seals of the files."""
    seals = {role: storage.read_seal(paths.shipped_organism(seed) / role) for role in organism.roles(profile)}
    rows = [f"| {r} | {seal['steps']} | {seal['last_loss']:.4f} | `{seal['key']}` |" for r, seal in seals.items()]
    shape = profile.architecture
    return _CARD.format(
        seed=seed,
        profile=profile.name,
        parameters=sum(p.numel() for p in architecture.new_model(profile, seed).parameters()),
        layers=shape.layers,
        width=shape.width,
        words=len(tokenizer()),
        rows="\n".join(rows),
    )


def ship(profile: str, seed: int) -> list[Path]:
    """Copy the models of a published profile into the repository, sealed as they are; trains what is not cached."""
    settings = profiles.load(profile)
    if not (isinstance(settings, profiles.Trained) and settings.published):
        raise InputError(f"profile {profile!r} is not published, so its models are not shipped")
    shipped = []
    for role in organism.roles(settings):
        folder, _ = models.find(settings, role, seed, shipped=False)
        storage.copy_sealed(folder, paths.shipped_organism(seed) / role)
        shipped.append(paths.shipped_organism(seed) / role)
    storage.write_text(paths.shipped_organism(seed) / "README.md", card(settings, seed))
    return shipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.shipping", description=__doc__)
    parser.add_argument("--profile", default="kingdom")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        ship(options.profile, options.seed)
    except InputError as problem:
        parser.exit(2, f"{problem}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
