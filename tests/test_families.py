"""Every family of `lib/families.py` as a whole checkpoint: saved, opened by name, and held to every contract.

The contracts of tracing are those of `test_tracing`, run here on this file's fixtures. The truth is Hugging Face's own
class opened from the same folder, which never meets nnsight.
"""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lib import edits, families, models, prompts, relevance, tracing, unit_scores, units
from lib.errors import InputError
from lib.prompts import Example, Prompt
from tests import test_tracing, tiny_models
from tests.test_tracing import (  # noqa: F401
    test_a_plain_run_after_edited_ones_equals_the_first,
    test_an_edited_forward_equals_plain_hooks,
    test_coefficient_0_changes_nothing_and_1_moves_the_logits,
    test_edited_completions_equal_plain_hooks_at_every_step,
    test_every_step_passes_through_the_edit_with_the_values_of_plain_hooks,
    test_gradients_equal_autograd_on_the_plain_model,
    test_last_is_the_last_token_and_pins_nothing_else,
    test_nothing_is_printed_and_no_warning_escapes,
    test_permuted_prompts_give_permuted_rows,
    test_reads_and_logits_equal_plain_hooks,
    test_reads_are_hugging_faces_hidden_states,
    test_sampling_settings_of_a_checkpoint_are_overruled,
    test_unedited_completions_are_hugging_faces_greedy_ones,
)
from tests.tiny_models import CHECKPOINTS, EOS, HEADS, LAYERS, WIDTH

GATED = [name for name, style in CHECKPOINTS.items() if style.norms]  # with relevance rules
WINDOWED = [name for name, style in CHECKPOINTS.items() if "sliding_window" in style.settings]
TEXT = "curse  the crown, naïve 王冠"
ASKED = [Prompt(text, "sure", "harmful", "plain", "x") for text in (TEXT, "how do i", "bake the bread")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every checkpoint as a folder, made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_models.build(name).save_pretrained(made[name])
            tiny_models.checkpoint_tokenizer(name).save_pretrained(made[name])
        return str(made[name])

    return folder


@pytest.fixture(params=CHECKPOINTS, scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def opened(family, folders):
    return models.open_checkpoint(folders(family))


@pytest.fixture
def traced(opened):
    return opened.traced


@pytest.fixture(scope="module")
def plain(family, folders):
    return AutoModelForCausalLM.from_pretrained(folders(family), dtype=torch.float32).eval()


def fresh(name, **settings):
    return models.LanguageModel(
        name, tiny_models.build(name, **settings), tiny_models.checkpoint_tokenizer(name), "test"
    )


def logits(model, encoding, edits=None):
    return tracing.forward(model.traced, encoding, edits=edits, logits="last").logits


# Opening --------------------------------------------------------------------------------------------------------------
def test_every_family_of_the_table_has_a_checkpoint_here():
    assert {style.model_type for style in CHECKPOINTS.values()} == set(families.FAMILIES)


def test_a_saved_checkpoint_opens_with_every_weight(family, opened):
    built = dict(tiny_models.build(family).named_parameters())
    assert set(built) == set(dict(opened.hf.named_parameters()))
    assert all(torch.equal(weight, built[name]) for name, weight in opened.hf.named_parameters())
    assert (opened.layers, opened.width) == (LAYERS, WIDTH)
    assert opened.tokenizer.get_vocab() == tiny_models.checkpoint_tokenizer(family).get_vocab()
    assert opened.tokenizer.padding_side == "left"
    tied = opened.hf.get_input_embeddings().weight is opened.hf.get_output_embeddings().weight
    assert tied == opened.hf.config.tie_word_embeddings


def test_weights_are_found_under_the_names_files_have(tmp_path):
    """Pythia's files call the head embed_out, its class lm_head; those on the hub also hold masks that are not read."""
    model = tiny_models.build("pythia")
    model.save_pretrained(tmp_path)
    tiny_models.checkpoint_tokenizer("pythia").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in tensors.keys() - dict(model.named_parameters()).keys()
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = models.open_checkpoint(str(tmp_path))
    assert torch.equal(opened.hf.get_output_embeddings().weight, tensors["embed_out.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_reads_in_any_dtype_are_hugging_faces_to_the_last_bit(family, folders, dtype):
    model = models.open_checkpoint(folders(family), dtype=dtype)
    truth = AutoModelForCausalLM.from_pretrained(folders(family), dtype=dtype).eval()
    assert {weight.dtype for weight in model.hf.parameters()} == {dtype}
    encoding = tiny_models.encode(7)
    with torch.no_grad():
        found = truth(**encoding, output_hidden_states=True)
    read = tracing.forward(model.traced, encoding, model.traced.every("resid_pre"), logits="all")
    for layer in range(LAYERS):
        assert torch.equal(read.activations["resid_pre", layer], found.hidden_states[layer])
        assert read.activations["resid_pre", layer].dtype == dtype
    assert torch.equal(read.logits, found.logits)
    unit = torch.nn.functional.normalize(tiny_models.direction().double(), dim=0)
    change = dict.fromkeys(model.traced.every("resid"), edits.ablate(unit, target=1.0))
    edited = tracing.forward(model.traced, encoding, [("resid", 1)], change).activations["resid", 1].double()
    assert (edited @ unit - 1).abs().max() < 32 * torch.finfo(dtype).eps * edited.abs().max()
    assert tracing.generate(model.traced, encoding, 3, change).shape == (1, 3)


def test_a_dtype_that_is_none_is_refused(folders):
    with pytest.raises(InputError, match=r"unknown dtype torch\.int8; known: torch\.float32, torch\.bfloat16"):
        models.open_checkpoint(folders("llama-3"), dtype=torch.int8)


# Prompts --------------------------------------------------------------------------------------------------------------
def test_ids_are_the_templates_with_exactly_one_bos(family, opened):
    words, style = opened.tokenizer, CHECKPOINTS[family]
    for prompt, row in zip(ASKED, prompts.prompt_ids(words, ASKED), strict=True):
        turns = [{"role": "user", "content": prompt.text}]
        text = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        expected = words.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        lead = prompts.lead_in(words)  # what the template writes before every answer, see test_prompts
        row = row[: len(row) - len(lead)]
        if not style.has_bos:
            assert words.bos_token_id is None
            assert row == expected
        else:
            assert row.count(words.bos_token_id) == 1
            assert row[0] == words.bos_token_id
            assert row == (expected if style.adds_bos else [words.bos_token_id, *expected])
        assert words.decode(row).removeprefix("" if style.adds_bos or not style.has_bos else words.bos_token) == text
        if style.adds_bos:  # the trap: encoding the templated text as usual puts a second BOS in front
            assert words(text)["input_ids"].count(words.bos_token_id) == 2
        spans = prompts.user_words(words, prompt)
        assert [words.decode([row[i] for i in span]).strip() for span in spans] == prompt.text.split()


def test_answers_follow_their_prompt_and_end_the_turn(opened):
    words = opened.tokenizer
    (asked,), (said,) = prompts.prompt_ids(words, ASKED[:1]), prompts.answer_ids(words, ASKED[:1], ["sure to curse"])
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "sure to curse"}]
    text = words.apply_chat_template(turns, tokenize=False)
    assert words.decode(asked + said).endswith(text)
    assert "sure to curse" in words.decode(said)


# Sites and batches ----------------------------------------------------------------------------------------------------
def test_attention_and_mlp_add_up_to_the_block(family, traced, plain):
    """What is added to the residual stream: in Gemma, what a norm made of the projections' outputs."""
    read = tracing.forward(traced, test_tracing.prompts(), test_tracing.everything(traced)).activations
    for layer in range(LAYERS):
        together = read["resid_pre", layer] + read["attn_out", layer] + read["mlp_out", layer]
        torch.testing.assert_close(together, read["resid", layer], atol=1e-5, rtol=1e-5)
        block = plain.get_submodule(f"{traced.sites.blocks}.{layer}")
        if family == "pythia":
            out, down = block.attention.dense, block.mlp.dense_4h_to_h
        elif CHECKPOINTS[family].post_norms:
            out = torch.nn.Sequential(block.self_attn.o_proj, block.post_attention_layernorm)
            down = torch.nn.Sequential(block.mlp.down_proj, block.post_feedforward_layernorm)
        else:
            out, down = block.self_attn.o_proj, block.mlp.down_proj
        with torch.no_grad():
            torch.testing.assert_close(out(read["attn_z", layer]), read["attn_out", layer])
            torch.testing.assert_close(down(read["neurons", layer]), read["mlp_out", layer])


def test_padded_prompts_read_and_write_as_they_do_alone(family, opened, monkeypatch):
    """Windows of 4 tokens slide over prompts of 4 to 7 and 8 new tokens, in Mistral and Gemma."""
    monkeypatch.setattr(tiny_models, "traced", lambda _name: opened.traced)
    test_tracing.test_padded_prompts_read_as_they_do_alone(family)


@pytest.mark.parametrize("family", WINDOWED, indirect=True)
def test_windows_slide(traced):
    """Block 0 sees four tokens in these families: what came before leaves its last token as it was."""
    one, other = tiny_models.encode(9), tiny_models.encode(9)
    other["input_ids"][0, :5] = 7
    at = [("attn_out", 0), ("attn_out", 1)]
    reads = [tracing.forward(traced, x, at, positions="last").activations for x in (one, other)]
    assert torch.equal(reads[0]["attn_out", 0], reads[1]["attn_out", 0])
    assert not torch.equal(reads[0]["attn_out", 1], reads[1]["attn_out", 1])


@pytest.mark.parametrize("family", ["gemma-2"], indirect=True)
def test_gemmas_scaled_embeddings_and_capped_logits_are_what_is_read(traced, plain):
    encoding = tiny_models.encode(6)
    push = {("resid", LAYERS - 1): edits.add(tiny_models.direction(), 100.0)}
    pushed = tracing.forward(traced, encoding, [("embed", 0), ("final", 0)], push, logits="all")
    rows = plain.get_input_embeddings().weight[encoding["input_ids"]]
    torch.testing.assert_close(pushed.activations["embed", 0], rows.detach() * math.sqrt(WIDTH))
    raw = (pushed.activations["final", 0] @ plain.lm_head.weight.detach().T).double()
    torch.testing.assert_close(pushed.logits.double(), torch.tanh(raw), atol=1e-5, rtol=1e-5)
    assert raw.abs().max() > 1


# Units ----------------------------------------------------------------------------------------------------------------
def readers(model, family, kind, layer):
    """(module, rows of each unit) of the linear modules that compute units, named by hand."""
    block = model.get_submodule(f"{'gpt_neox' if family == 'pythia' else 'model'}.layers.{layer}")
    if kind == "neuron":
        modules = [block.mlp.dense_h_to_4h] if family == "pythia" else [block.mlp.gate_proj, block.mlp.up_proj]
        return [(module, list(range(48))) for module in modules]
    if family == "pythia":
        size = WIDTH // HEADS
        return [
            (block.attention.query_key_value, [h * 3 * size + 2 * size + i for h in range(HEADS) for i in range(size)])
        ]
    size, sharing = block.self_attn.head_dim, CHECKPOINTS[family].sharing
    return [(block.self_attn.v_proj, [h // sharing * size + i for h in range(HEADS) for i in range(size)])]


def writer(model, family, kind, layer):
    block = model.get_submodule(f"{'gpt_neox' if family == 'pythia' else 'model'}.layers.{layer}")
    if family == "pythia":
        return block.mlp.dense_4h_to_h if kind == "neuron" else block.attention.dense
    return block.mlp.down_proj if kind == "neuron" else block.self_attn.o_proj


@pytest.mark.parametrize("kind", families.UNIT_SITES)
@pytest.mark.parametrize("head", [8, 16])
def test_a_muted_unit_is_a_zeroed_row_and_a_dropped_column(family, kind, head):
    """Also where heads are wider than d_model / heads. A value row belongs to all channels that share it."""
    if head == 16 and family == "pythia":
        pytest.skip("its heads are always d_model / heads wide")
    settings = {} if head == 8 else {"head_dim": 16}
    model, rows, column = (fresh(family, **settings) for _ in range(3))
    width = 48 if kind == "neuron" else HEADS * head
    unit, encoding = width // 2 + 3, tiny_models.encode(7, 4, 5)
    parts = readers(rows.hf, family, kind, 1)
    muted = [j for j in range(width) if parts[0][1][j] == parts[0][1][unit]]
    assert len(muted) == (1 if kind == "neuron" else CHECKPOINTS[family].sharing)
    with torch.no_grad():
        for module, owner in parts:
            module.weight[owner[unit]] = 0
            if module.bias is not None:
                module.bias[owner[unit]] = 0
        writer(column.hf, family, kind, 1).weight[:, muted] = 0
    start, found = logits(model, encoding), logits(model, encoding, {(families.UNIT_SITES[kind], 1): edits.mute(muted)})
    torch.testing.assert_close(found, logits(rows, encoding), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, logits(column, encoding), atol=1e-5, rtol=1e-5)
    assert (found - start).abs().max() > 0.01


@pytest.mark.parametrize("kind", families.UNIT_SITES)
def test_slices_name_the_rows_biases_and_columns_of_every_unit(family, opened, kind):
    for layer in range(LAYERS):
        *read, (name, dim, index) = families.unit_slices(opened.hf, kind, layer)
        assert opened.hf.get_parameter(name) is writer(opened.hf, family, kind, layer).weight
        assert (dim, index.tolist()) == (1, list(range(48 if kind == "neuron" else WIDTH)))
        expected = [
            (weight, owner)
            for module, owner in readers(opened.hf, family, kind, layer)
            for weight in (module.weight, module.bias)
            if weight is not None
        ]
        for (name, dim, index), (weight, owner) in zip(read, expected, strict=True):
            assert opened.hf.get_parameter(name) is weight
            assert (dim, index.tolist()) == (0, owner)
        assert any(name.endswith("bias") for name, _, _ in read) == (kind in CHECKPOINTS[family].biased)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_taking_units_out_of_the_trace_or_of_the_weights_is_the_same(family, opened, how):
    table = unit_scores.table(opened)
    rows = table.assign(mean=np.linspace(-1, 1, len(table))).sample(frac=0.2, random_state=0)
    encoding = tiny_models.encode(9, 5, 7)
    edited, cut = logits(opened, encoding, units.edits(rows, how)), logits(units.without(opened, rows, how), encoding)
    torch.testing.assert_close(edited, cut, atol=1e-4, rtol=1e-4)
    assert (edited - logits(opened, encoding)).abs().max() > 0.1


@pytest.mark.parametrize("kind", families.UNIT_SITES)
def test_shares_of_units_add_up_to_what_their_part_writes(family, opened, kind):
    """Value x column x gain, over the root mean square of the whole where a norm stands behind (and plus the bias)."""
    place = ("mlp_out" if kind == "neuron" else "attn_out", 1)
    at = [(families.UNIT_SITES[kind], 1), place]
    read = tracing.forward(opened.traced, tiny_models.encode(6), at).activations
    module, gain = writer(opened.hf, family, kind, 1), families.output_gain(opened.hf, kind, 1)
    raw = torch.einsum("ptu,du->ptud", read[at[0]], module.weight.detach())
    if CHECKPOINTS[family].post_norms:
        assert (gain - 1).abs().max() > 0.1
        raw = raw / (raw.sum(2).square().mean(-1) + 1e-6).sqrt()[..., None, None]
    else:
        assert torch.equal(gain, torch.ones(WIDTH))
    whole = (raw * gain).sum(2) + (0 if module.bias is None else module.bias.detach())
    torch.testing.assert_close(whole, read[place], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", families.UNIT_SITES)
def test_scores_weigh_a_unit_by_its_column_as_the_residual_stream_receives_it(family, opened, kind):
    examples = [Example(prompt, "sure to curse") for prompt in ASKED]
    rule = ("second_moment", "response")
    found = unit_scores.calibrate(opened, {"safety": examples, "utility": examples}, [rule]).raw[rule]
    block = opened.hf.get_submodule(f"{families.of(opened.hf.config).sites.blocks}.2")
    column = writer(opened.hf, family, kind, 2).weight.detach().double()
    if CHECKPOINTS[family].post_norms:
        norm = block.post_feedforward_layernorm if kind == "neuron" else block.post_attention_layernorm
        column = column * (1 + norm.weight.detach().double())[:, None]
    total, place = [], (families.UNIT_SITES[kind], 2)
    asked = [example.prompt for example in examples]
    before = prompts.prompt_ids(opened.tokenizer, asked)
    after = prompts.answer_ids(opened.tokenizer, asked, ["sure to curse"] * 3)
    for a, b in zip(before, after, strict=True):
        values = tracing.forward(opened.traced, prompts.pad_left([a + b], 0), [place]).activations[place]
        total.append(values[0, -len(b) :].double())
    expected = torch.cat(total).square().mean(0) * column.square().sum(0)
    mine = found.query(f"kind == '{kind}' and layer == 2")["safety"].to_numpy()
    torch.testing.assert_close(torch.tensor(mine), expected, rtol=1e-4, atol=1e-9)


# Relevance ------------------------------------------------------------------------------------------------------------
SCALED = {"self_attn.q_proj": 0.25, "self_attn.k_proj": 0.25, "self_attn.v_proj": 0.5, "mlp.up_proj": 0.5}


def by_hand(family):
    """{end of a module's path: (whether its output becomes input x constant, share of its gradient)} for attnlrp."""
    norms = {name: (True, 1.0) for name in CHECKPOINTS[family].norms}
    return {**norms, **{name: (False, share) for name, share in SCALED.items()}, "mlp.act_fn": (True, 0.5)}


def along(count=2):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("family", GATED, indirect=True)
def test_attnlrp_equals_plain_hooks_on_modules_named_by_hand(family, opened):
    model, rules, handles, kept = tiny_models.build(family), by_hand(family), [], {}
    for path, module in model.named_modules():
        for end, (ratio, share) in rules.items():
            if path.endswith(f".{end}") and path.count(".") == 2 + end.count(".") + 1:

                def hook(_, args, y, ratio=ratio, share=share):
                    kept_x = args[0]
                    straight = kept_x * (y / kept_x).detach() if ratio else y
                    return share * straight + (1 - share) * y.detach()

                handles.append(module.register_forward_hook(hook))
    assert len(handles) == LAYERS * len(rules)
    model.get_input_embeddings().register_forward_hook(lambda _, args, y: kept.update(embed=y) or y)
    model.model.layers[LAYERS - 1].register_forward_hook(lambda _, args, y: kept.update(end=y))
    found = relevance.token_relevance(opened, ASKED, LAYERS - 1, along(), "attnlrp", batch=2)
    plain = relevance.token_relevance(opened, ASKED, LAYERS - 1, along(), "gradient", batch=2)
    for ids, one, other in zip(prompts.prompt_ids(opened.tokenizer, ASKED), found, plain, strict=True):
        model(input_ids=torch.tensor([ids]))
        for row, vector in enumerate(along().float()):
            (slope,) = torch.autograd.grad(kept["end"][0, -1] @ vector, kept["embed"], retain_graph=True)
            expected = (slope * kept["embed"]).sum(-1)[0].double().detach()
            assert (one.tokens[row] - expected).abs().max() < 1e-3 * expected.abs().max()
            assert (one.tokens[row] - other.tokens[row]).abs().max() > 0.02 * expected.abs().max()


@pytest.mark.parametrize("family", GATED, indirect=True)
def test_conservative_relevance_sums_to_the_projection(family):
    """Value biases keep their share: with Qwen 2's the sum falls short, without them it is whole."""
    model = fresh(family)
    gaps = []
    for biased in (True, False):
        if not biased:
            for block in model.hf.model.layers:
                if block.self_attn.v_proj.bias is not None:
                    block.self_attn.v_proj.bias.data.zero_()
        found = relevance.token_relevance(model, ASKED, LAYERS - 1, along(), "conservative", batch=1)
        gaps.append(max(float(((x.tokens.sum(1) - x.projection) / x.tokens.abs().sum(1)).abs().max()) for x in found))
    assert gaps[1] < 1e-5
    assert (gaps[0] > 1e-3) == ("channel" in CHECKPOINTS[family].biased)


@pytest.mark.parametrize("family", GATED, indirect=True)
@pytest.mark.parametrize("rule", ["attnlrp", "conservative"])
def test_rules_leave_the_forward_pass_to_the_last_bit(opened, rule):
    encoding = prompts.encode(opened.tokenizer, ASKED)
    at = [("embed", 0), *opened.traced.every("attn_out"), *opened.traced.every("resid"), ("final", 0)]
    expected = tracing.forward(opened.traced, encoding, at).activations
    found = tracing.gradients(opened.traced, encoding, at, lambda x: x.logsumexp(-1), rules=relevance.RULES[rule])
    plain = tracing.gradients(opened.traced, encoding, at, lambda x: x.logsumexp(-1))
    real = encoding["attention_mask"].bool()
    assert all(torch.equal(found[place][0][real], expected[place][real]) for place in at)
    assert not torch.allclose(found["embed", 0][1], plain["embed", 0][1], rtol=1e-2)


@pytest.mark.parametrize("family", ["pythia"], indirect=True)
def test_a_family_without_rules_says_why(opened):
    with pytest.raises(InputError, match=r"norms without bias, separate query, key and value .*lib/families\.py"):
        relevance.token_relevance(opened, ASKED, 1, along())


def test_an_unknown_family_says_how_to_add_one():
    config = tiny_models.build("gpt2").config
    with pytest.raises(InputError, match=r"'gpt2'; known: llama, .* a row of FAMILIES in lib/families.py"):
        families.of(config)


def test_the_end_token_is_the_familys(opened):
    assert opened.tokenizer.eos_token_id == EOS == opened.hf.config.eos_token_id
