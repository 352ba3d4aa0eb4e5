"""Reading and editing a running model: the only file that opens an nnsight trace.

Owns `forward`, `read_many`, `generate` and `gradients` over named sites (see `sites`), the forward order of reads and
edits, and nnsight's traps (each has a comment). It knows no model family (`families` does), no edits (`edits` makes
them), no relevance rules (`relevance` does) and no prompts. Where a model runs is said once, in `wrap`, and holds for
every helper: here, or on a server (see `remote`). What runs inside a trace, edits, rules and objectives included, is
shipped to that server by source, annotations evaluated: such functions are annotated without jaxtyping, which the
server need not have. They return what they make: anything they append to or change outside is lost there.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib import remote as server
from lib.edits import Edit
from lib.errors import InputError, unknown
from lib.remote import Remote
from lib.sites import IN_BLOCK, RULE_SITES, SITES, Place, Sites

Rule = Callable[[Tensor, Tensor], Tensor]  # (input, output) of a module -> its output, with another backward pass
# where, module path, "input", "output" or "both" (a rule), edit or rule or None, whether it is read
Step = tuple[Place, str, str, Any, bool]


@dataclass(frozen=True)
class Traced:
    """A causal LM that can be read and edited at its sites. Make it by `wrap`, once per model."""

    model: nnsight.TransformersModel
    sites: Sites
    layers: int
    context: int  # tokens
    remote: Remote = False

    def every(self, site: str) -> list[Place]:
        """The site in every block, for `reads=` or, by `dict.fromkeys(..., edit)`, for `edits=`."""
        return [(site, layer) for layer in range(self.layers if site in IN_BLOCK else 1)]

    def locate(self, place: Place) -> tuple[str, str]:
        """(module path, "input" or "output") of a place; `InputError` when there is no such place."""
        if not (isinstance(place, tuple) and len(place) == 2):
            raise InputError(
                f"a place is (site, layer), such as ('resid', 3), not {place!r}; reads take a list of them"
            )
        site, layer = place
        if site not in SITES:
            raise unknown("site", site, SITES)
        last = len(self.every(site)) - 1
        if not 0 <= layer <= last:
            raise InputError(f"{site} has no layer {layer}; layers go from 0 to {last} here")
        path, _, end = getattr(self.sites, site).partition(":")
        block = f"{self.sites.blocks}.{layer}" if site in IN_BLOCK else ""
        return f"{block}.{path}".strip("."), end

    def locate_rule(self, name: str) -> list[tuple[Place, str]]:
        """(name and layer, module path) of every module a rule acts on: none where the family has no such module.

        `InputError` when the rules do not fit the family at all.
        """
        if name not in RULE_SITES:
            raise unknown("rule site", name, RULE_SITES)
        if self.sites.rules is None:
            raise InputError(
                f"{type(self.model._module).__name__} has no relevance rules, which need norms without bias, separate "
                "query, key and value projections and a gated MLP; use plain gradients, or name its rules in "
                "lib/families.py"
            )
        if name not in self.sites.rules:
            return []
        path = self.sites.rules[name]
        if name == "final_norm":
            return [((name, 0), path)]
        return [((name, layer), f"{self.sites.blocks}.{layer}.{path}") for layer in range(self.layers)]


@dataclass(frozen=True)
class Trace:
    """What `forward` read, detached, on the model's device and in its dtype."""

    activations: dict[Place, Float[Tensor, "prompt token d"] | Float[Tensor, "prompt d"]]
    logits: Float[Tensor, "prompt token vocabulary"] | Float[Tensor, "prompt vocabulary"] | None


def wrap(model: Any, tokenizer: Any, sites: Sites, remote: Remote = False, revision: str | None = None) -> Traced:
    """Make a Hugging Face causal LM traceable at `sites`; where `remote` is a server, one without weights (`skeleton`).

    nnsight routes every module through itself and sets the tokenizer to pad left; the model's numbers, `generate`,
    training and saving stay as they are. `revision` is part of the name by which a server knows the model. `InputError`
    when a path of `sites` leads nowhere, when a server has no key, and for weights that are not here and should be.
    """
    remote = server.check(remote)
    if server.elsewhere(remote):
        options: dict[str, Any] = {"device": "meta", "revision": revision}
    else:
        server.need_weights(model)
        # Hugging Face's pipeline, in which nnsight puts a model, would move it to the first GPU there is.
        options = {} if hasattr(model, "hf_device_map") else {"device": model.device}
    wrapped = nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation", **options)
    module = wrapped._module
    layers, context = len(_submodule(module, sites.blocks)), module.config.get_text_config().max_position_embeddings
    traced = Traced(wrapped, sites, layers, context, remote)
    for site in SITES:
        path, end = traced.locate((site, 0))
        _submodule(module, path)
        if end not in ("input", "output"):
            raise InputError(f"site {site} is {getattr(sites, site)!r}; it must end in :input or :output")
    for name in sites.rules or ():
        _submodule(module, traced.locate_rule(name)[0][1])
    return traced


def forward(
    traced: Traced,
    encoding: Mapping[str, Tensor],
    reads: Iterable[Place] = (),
    edits: Mapping[Place, Edit] | None = None,
    positions: Literal["all", "last"] = "all",
    logits: Literal["none", "last", "all"] | int = "none",
) -> Trace:
    """One forward pass of left-padded prompts without gradients, read at `reads` and changed by `edits`.

    A place that is both edited and read is read after its edit. Activations are [prompt token d], or [prompt d] at
    the last token with `positions="last"`; mask pads before comparing. Without logits the pass ends at the last read; a
    number keeps those of so many last tokens, [prompt token vocabulary], and no others are computed.
    """
    if positions not in ("all", "last"):
        raise unknown("positions", positions, ("all", "last"))
    keep = {"none": 0, "all": 0, "last": 1}.get(str(logits), logits)  # 0 is Hugging Face's word for all
    if not isinstance(keep, int) or (keep < 1 and logits not in ("none", "all")):
        raise unknown("logits", logits, ("none", "last", "all", "a number of tokens"))
    steps = _steps(traced, reads, edits or {})
    if logits == "none":
        while steps and not steps[-1][-1]:
            steps.pop()  # an edit after the last read changes nothing that is kept
        if not steps:
            raise InputError("nothing to return; name the reads, or ask for logits='last'")
    inputs = _checked(traced, encoding)
    options = {"use_cache": False, "logits_to_keep": keep}
    model, where = traced.model, traced.remote
    with torch.no_grad(), server.session(where), model.trace(inputs, remote=where, **options) as tracer:
        found = nnsight.save(_visit(model, steps, last=positions == "last"))
        if logits == "none":
            tracer.stop()  # ends the block: later layers do not run
        scores = model.output.logits.detach()
        found["logits"] = scores[:, -1] if logits == "last" else scores
    return Trace(activations=found, logits=found.pop("logits", None))


def read_many(
    traced: Traced,
    encodings: Iterable[Mapping[str, Tensor]],
    reads: Iterable[Place],
    edits: Mapping[Place, Edit] | None = None,
) -> dict[Place, Float[Tensor, "prompt d"]]:
    """Last-token activations of many batches, one row a prompt in the order given, float32 on the CPU."""
    reads = list(reads)
    batches = [forward(traced, encoding, reads, edits, "last").activations for encoding in encodings]
    if not batches:
        raise InputError("no encodings to read; supply at least one batch")
    return {place: torch.cat([batch[place].float().cpu() for batch in batches]) for place in batches[0]}


def generate(
    traced: Traced,
    encoding: Mapping[str, Tensor],
    max_new_tokens: int,
    edits: Mapping[Place, Edit] | None = None,
) -> Int[Tensor, "prompt new_token"]:
    """Greedy completions without their prompts, `max_new_tokens` wide, padded after the end-of-sequence token.

    Edits act on the prompt and on every generated token. Settings of the checkpoint that would make decoding other
    than greedy are overruled.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    steps = _steps(traced, (), edits or {})
    inputs = _checked(traced, encoding, room=max_new_tokens)
    model, where, pad = traced.model, traced.remote, traced.model.tokenizer.pad_token_id
    options = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, **_greedy(model)}
    if not steps:  # a loop over `tracer.iter` that touches no module never ends
        with torch.no_grad(), server.session(where), model.generate(inputs, remote=where, **options) as tracer:
            ids = nnsight.save(tracer.result)
    else:
        with warnings.catch_warnings():
            # The open loop ends by waiting for a step that never comes; nnsight warns each time.
            warnings.filterwarnings("ignore", ".* was never reached: the loop asked for a step", UserWarning)
            with torch.no_grad(), server.session(where), model.generate(remote=where, **options) as tracer:
                with tracer.invoke(inputs):
                    for _ in tracer.iter[:]:  # without it, only the prompt would be edited
                        _visit(model, steps)
                with tracer.invoke():  # statements after the open loop never run, so the result has its own block
                    ids = nnsight.save(tracer.result)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return torch.nn.functional.pad(new, (0, max_new_tokens - new.shape[1]), value=pad)


def gradients(
    traced: Traced,
    encoding: Mapping[str, Tensor],
    at: Sequence[Place],
    objective: Callable[[Float[Tensor, "prompt d"]], Float[Tensor, "*target prompt"]],
    edits: Mapping[Place, Edit] | None = None,
    of: Place | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> dict[Place, tuple[Float[Tensor, "prompt token d"], Float[Tensor, "*target prompt token d"]]]:
    """(activation, gradient) at each place, of `objective(last-token logits)` summed over prompts.

    With `of`, the objective is of the last token's activation there, and the pass ends there. An objective with several
    targets costs one forward and a backward for each. `rules` replace the backward pass of modules, in every block, by
    their name in `RULE_SITES` (a name the family has no module for does nothing); they come before edits and reads of
    the same value.

    Prompts do not mix, so row i is the gradient of prompt i's own objective. Activations are those after the edits.
    Parameters may be frozen and get no gradient. A place the objective does not depend on has gradient 0.
    """
    places = list(at)
    if not places:
        raise InputError("no places to differentiate at; name at least one (site, layer)")
    steps = _steps(traced, places if of is None else [*places, of], edits or {}, rules or {})
    if of is not None:
        steps = steps[: [place for place, *_ in steps].index(of) + 1]
        beyond = set(places) - {place for place, *_ in steps}
        if beyond:
            raise InputError(f"{of} cannot depend on {min(beyond)}, which comes after it; name places before it")
    inputs = _checked(traced, encoding)
    model, where = traced.model, traced.remote
    options = {"use_cache": False, "logits_to_keep": 1}
    with torch.enable_grad(), server.session(where), model.trace(inputs, remote=where, **options) as tracer:
        found = _visit(model, steps, graph=True)
        end = model.output.logits if of is None else found[of]
        pairs = nnsight.save(_slopes(found, objective(end[:, -1])))
        if of is not None:
            tracer.stop()  # ends the block: later layers do not run
    return {place: pairs[place] for place in places}


def _visit(model: Any, steps: list[Step], last: bool = False, graph: bool = False) -> dict[Place, Tensor]:
    """Edit and read, step by step. Runs inside a trace, when remote on the server: what it names is shipped with it."""
    found = {}
    for place, path, end, edit, read in steps:
        module = attrgetter(path)(model)
        if end == "both":
            before = module.input  # asked for before the output, or nnsight finds it out of order
            module.output = edit(before, module.output)
            continue
        value = getattr(module, end)
        before = value[0] if isinstance(value, tuple) else value  # attention returns (output, weights)
        now = before if edit is None else edit(before)
        if now.shape != before.shape:
            shapes = f"{tuple(before.shape)} into {tuple(now.shape)}"
            raise InputError(f"the edit at {place} turned shape {shapes}; an edit must keep the shape")
        if graph and read and not now.requires_grad:
            now = now.detach().requires_grad_()  # frozen parameters: the graph starts at the first place read
        if now is not before:
            setattr(module, end, (now, *value[1:]) if isinstance(value, tuple) else now)
        if read:
            # Cloned, because a view of the last token would keep the whole activation alive.
            found[place] = now if graph else (now[:, -1] if last else now).detach().clone()
    return found


def _slopes(found: dict[Place, Tensor], values: Tensor) -> dict[Place, tuple[Tensor, Tensor]]:
    """(activation, gradient) of each place; `values` [*target prompt], one backward pass a target. Runs inside too."""
    totals, at = values.sum(-1), list(found.values())
    rows = [torch.autograd.grad(t, at, retain_graph=True, materialize_grads=True) for t in totals.reshape(-1)]
    slopes = [torch.stack(row).reshape(*totals.shape, *row[0].shape) for row in zip(*rows, strict=True)]
    return {place: (found[place].detach(), slope) for place, slope in zip(found, slopes, strict=True)}


def _steps(
    traced: Traced, reads: Iterable[Place], edits: Mapping[Place, Edit], rules: Mapping[str, Rule] | None = None
) -> list[Step]:
    """Reads, edits and rules in the order the model reaches them; nnsight refuses any other."""
    wanted = set(reads)
    places = {place: traced.locate(place) for place in wanted | set(edits)}
    for place, edit in edits.items():
        if not callable(edit):
            raise InputError(f"the edit at {place} is {edit!r}; make one with lib.edits")
    steps: list[Step] = [(place, *places[place], edits.get(place), place in wanted) for place in places]
    for name, rule in (rules or {}).items():
        steps += [(place, path, "both", rule, False) for place, path in traced.locate_rule(name)]

    turn = traced.sites.order

    def order(step: Step) -> tuple[int, int]:
        site, layer = step[0]
        block = {"embed": -1, "final_norm": traced.layers, "final": traced.layers}.get(site, layer)
        return block, turn.index(site)

    return sorted(steps, key=order)


def _checked(traced: Traced, encoding: Mapping[str, Tensor], room: int = 0) -> dict[str, Tensor]:
    """The two tensors a model needs, or `InputError`; `room` is how many tokens are to be generated after them."""
    for name in ("input_ids", "attention_mask"):
        # Without a mask every pad would count as a token, silently.
        if not isinstance(encoding.get(name), Tensor):
            raise InputError(f"the encoding has no {name} tensor; tokenise with padding=True, return_tensors='pt'")
    ids, mask = encoding["input_ids"], encoding["attention_mask"]
    if ids.ndim != 2 or mask.shape != ids.shape or 0 in ids.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        raise InputError(f"input_ids and attention_mask have shapes {shapes}; both must be [prompt token], not empty")
    wrong = ((mask.long().diff(dim=1) < 0).any(1) | (mask[:, -1] == 0)).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"prompt {wrong[0]} has a pad after a token; set tokenizer.padding_side = 'left' and tokenise again"
        )
    known = traced.model._module.get_input_embeddings().num_embeddings
    foreign = ids[(ids < 0) | (ids >= known)].tolist()
    if foreign:
        raise InputError(
            f"token {foreign[0]} has no embedding; the model knows tokens 0 to {known - 1}. Encode with its "
            "own tokenizer, and leave out special tokens it has no use for"
        )
    if ids.shape[1] + room > traced.context:
        length = f"{ids.shape[1]} tokens" + (f" and {room} to generate" if room else "")
        raise InputError(f"{length} exceed the model's context of {traced.context}; shorten the prompts")
    if traced.remote:
        nnsight.register(__package__)  # an installed `lib` would be named, not shipped, and the server has none
    elif traced.model._module.training:
        raise InputError("the model is in training mode, so dropout would blur what is read; call model.eval() first")
    return {"input_ids": ids, "attention_mask": mask}


_NOT_GREEDY = (  # settings that change what is generated, or when it ends; None puts each out of action
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "sequence_bias", "guidance_scale", "exponential_decay_length_penalty", "watermarking_config", "stop_strings",
    "max_time", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers",
)  # fmt: skip


def _greedy(model: Any) -> dict[str, Any]:
    """Greedy decoding whatever the checkpoint's own settings say; chat checkpoints bring sampling and penalties.

    It ends at the model's own end and at its tokenizer's: they differ where a base model learned to answer in a chat
    template.
    """
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    options |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
    options |= {"num_return_sequences": 1, **dict.fromkeys(_NOT_GREEDY)}
    own = model._module.generation_config.eos_token_id
    ends = {model.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return {**options, "eos_token_id": sorted(ends) or None}


def _submodule(module: torch.nn.Module, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError:
        family = type(module).__name__
        raise InputError(f"{family} has no module {path!r}; correct its Sites in lib/families.py") from None
