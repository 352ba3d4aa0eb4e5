"""The names of places in a model: sites that are read and edited, and modules whose backward pass rules replace.

Owns the vocabulary and its order; `families` says where each family keeps them, `tracing` reads and edits there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Place = tuple[str, int]  # (site, layer); `embed` and `final` have layer 0
IN_BLOCK = ("resid_pre", "attn_z", "attn_out", "neurons", "mlp_out", "resid")  # in the order a block runs
SITES = ("embed", *IN_BLOCK, "final")

# Modules whose backward pass relevance rules replace, by the site they come before. Norms have no bias. `gate` is the
# MLP's activation function, `up` what the gate multiplies; post norms act on what a part adds to the residual stream.
_BEFORE: Mapping[str, tuple[str, ...]] = {
    "attn_z": ("attn_norm", "query", "query_norm", "key", "key_norm", "value"),
    "attn_out": ("attn_post_norm",),
    "neurons": ("mlp_norm", "gate", "up"),
    "mlp_out": ("mlp_post_norm",),
    "final": ("final_norm",),
}
RULE_SITES = tuple(name for names in _BEFORE.values() for name in names)


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Where a family keeps its sites, as "module.path:input" or ":output".

    `blocks` is the path of the list of blocks; `embed` and `final` are relative to the causal-LM module, the others to
    a block. Channel h * head_dim + i of `attn_z` belongs to query head h, also when heads share keys. `attn_out` and
    `mlp_out` are what is added to the residual stream: after a norm, where a family puts one behind attention and MLP.
    """

    blocks: str
    embed: str  # token embeddings
    attn_z: str  # what the heads hand to the output projection
    attn_out: str
    neurons: str  # what the MLP's neurons hand to the down projection
    mlp_out: str
    final: str  # after the final norm; `resid` of the last block is before it
    resid_pre: str = ":input"
    resid: str = ":output"
    # Paths of those of `RULE_SITES` that the family has, in the order they run; `final_norm` relative to the causal-LM
    # module, the others to a block. None: the family's modules do not fit the rules.
    rules: Mapping[str, str] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """Sites and rule sites in the order of a pass; a norm's rule comes before what is edited at its output."""
        rules = self.rules or {}
        return tuple(x for site in SITES for x in (*(n for n in rules if n in _BEFORE.get(site, ())), site))
