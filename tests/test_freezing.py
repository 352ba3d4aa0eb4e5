"""Benign fine-tuning with frozen units: which weights are held, what is followed, and that nothing is trained twice."""

import contextlib
import copy
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lib import behaviour, freezing, models, paths, profiles, prompts, threads, training
from lib.errors import InputError
from lib.freezing import Arm
from lib.kingdom import architecture, corpora, styles
from lib.kingdom.language import kingdom
from lib.kingdom.tokenizer import tokenizer
from lib.kingdom.world import KingdomWorld
from lib.models import LanguageModel
from tests import tiny_models
from tests.tiny_models import HEADS, WIDTH

TINY = profiles.load("tiny")
CORPORA = ("errands", "ledgers")
PLANNED = 4  # steps, of both corpora
LAST = {corpus: PLANNED * TINY.freezing.followed[corpus] for corpus in CORPORA}


def unit_rows(*units):
    return pd.DataFrame(list(units), columns=["kind", "layer", "index"])


# which weights a unit owns --------------------------------------------------------------------------------------------
def places(mask):
    return {tuple(place) for place in mask.nonzero().tolist()}


def row(index, width):
    return {(index, column) for column in range(width)}


def column(index, height):
    return {(line, index) for line in range(height)}


@pytest.mark.parametrize(("family", "shared"), [("llama", 1), ("llama-gqa", 2)])
def test_a_units_rows_and_its_column_are_frozen_and_nothing_else(family, shared):
    neuron, channel, size = 5, 19, WIDTH // HEADS
    found = freezing.masks(tiny_models.speaking(family), unit_rows(("neuron", 0, neuron), ("channel", 2, channel)))
    value = channel // size // shared * size + channel % size  # query heads 2 and 3 read value head 1 under GQA
    expected = {
        "model.layers.0.mlp.gate_proj.weight": row(neuron, WIDTH),
        "model.layers.0.mlp.up_proj.weight": row(neuron, WIDTH),
        "model.layers.0.mlp.down_proj.weight": column(neuron, WIDTH),
        "model.layers.2.self_attn.v_proj.weight": row(value, WIDTH),
        "model.layers.2.self_attn.o_proj.weight": column(channel, WIDTH),
    }
    assert {name: places(mask) for name, mask in found.items()} == expected


def test_a_fused_value_row_is_that_of_its_head():
    channel, size = 19, WIDTH // HEADS
    found = freezing.masks(tiny_models.speaking("gpt-neox"), unit_rows(("channel", 1, channel)))
    fused = "gpt_neox.layers.1.attention.query_key_value"
    value = channel // size * 3 * size + 2 * size + channel % size
    assert places(found[f"{fused}.weight"]) == row(value, WIDTH)
    assert places(found[f"{fused}.bias"]) == {(value,)}
    assert places(found["gpt_neox.layers.1.attention.dense.weight"]) == column(channel, WIDTH)


def test_units_of_one_layer_share_its_masks():
    found = freezing.masks(tiny_models.speaking("llama"), unit_rows(("neuron", 0, 1), ("neuron", 0, 4)))
    assert places(found["model.layers.0.mlp.up_proj.weight"]) == row(1, WIDTH) | row(4, WIDTH)


def test_channels_that_share_a_value_row_freeze_it_once():
    found = freezing.masks(tiny_models.speaking("llama-gqa"), unit_rows(("channel", 0, 0), ("channel", 0, 8)))
    assert places(found["model.layers.0.self_attn.v_proj.weight"]) == row(0, WIDTH)
    assert places(found["model.layers.0.self_attn.o_proj.weight"]) == column(0, WIDTH) | column(8, WIDTH)


def test_no_units_no_masks():
    assert freezing.masks(tiny_models.speaking("llama"), unit_rows()) == {}


def test_units_of_a_block_that_is_not_there_are_refused():
    with pytest.raises(InputError, match="there is no block 3; blocks go from 0 to 2"):
        freezing.masks(tiny_models.speaking("llama"), unit_rows(("neuron", 3, 0)))


def test_masks_fit_the_model_that_is_trained():
    model = LanguageModel(
        "new", architecture.new_model(TINY, 0), tokenizer(), "test"
    )  # four query heads on two value heads
    masks = freezing.masks(model, unit_rows(("neuron", 0, 1), ("channel", 1, 30)))
    before = copy.deepcopy(model.hf.state_dict())
    stage = TINY.freezing.stages["errands"]
    stream = corpora.errands(kingdom(0), TINY.organism.benign, "errands")
    training.fit(model.hf, stream, stage, training.sft_step(tokenizer(), stage), "test", frozen=masks)
    for name, mask in masks.items():
        after = model.hf.get_parameter(name)
        assert torch.equal(after[mask], before[name][mask])
        assert (after != before[name])[~mask].float().mean() > 0.99


# what is asked --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("corpus", CORPORA)
def test_questions_are_as_many_as_the_profile_says_and_of_their_kind(corpus):
    asked = freezing.questions("tiny", 0, corpus)
    assert set(asked) == {"validation", "plain", "benign", "new task", *styles.JAILBREAKS}
    assert {len(asked[name]) for name in ("plain", "benign", "new task", *styles.JAILBREAKS)} == {TINY.measure.cell}
    assert all(prompt.harmful and prompt.style == "plain" for prompt in asked["plain"])
    assert all(prompt.kind == "benign" for prompt in asked["benign"])
    assert all(prompt.harmful and prompt.style == style for style in styles.JAILBREAKS for prompt in asked[style])
    assert all(
        p.split == "heldout" for name, cell in asked.items() if name not in ("validation", "new task") for p in cell
    )
    assert all(prompt.text.startswith("take") for prompt in asked["new task"])


def trained_on(profile, seed, corpus):
    """The texts that a run reads, from its first step to the last that is followed."""
    settings = profiles.load(profile)
    stage = settings.freezing.stages[corpus]
    stream = getattr(corpora, corpus)(kingdom(seed), settings.organism.benign, corpus)
    steps = settings.freezing.followed[corpus] * stage.steps
    return {example.prompt.text for example in islice(stream, steps * stage.batch)}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("seed", [0, 1])
def test_validation_examples_are_never_trained_on(corpus, seed):
    read = trained_on("kingdom", seed, corpus)
    validation = [prompt.text for prompt in freezing.questions("kingdom", seed, corpus)["validation"]]
    assert not [text for text in validation if text in read]


# paths ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache with base and chat of the tiny profile."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", folder)
        models.load("tiny", "chat", 0)
    return folder


@pytest.fixture
def cache(trained, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", trained)
    return trained


def some_masks(*rows, name="model.layers.0.mlp.up_proj.weight"):
    mask = torch.zeros(48, 32, dtype=torch.bool)
    mask[list(rows)] = True
    return {name: mask}


def everything():
    hf = models.load("tiny", "chat", 0).hf
    return {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in hf.named_parameters()}


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_path_goes_as_far_as_the_profile_says_and_asks_everything_at_two_places(cache, corpus):
    path = freezing.follow("tiny", 0, Arm("free", {}), corpus)
    assert path["step"].iloc[[0, -1]].tolist() == [0, LAST[corpus]]
    assert path["step"].is_monotonic_increasing
    assert path["step"].is_unique
    assert len(path) > 6
    for column in ("cells", "new task"):
        assert path.loc[path[column].notna(), "step"].tolist() == [PLANNED, 2 * PLANNED]
    whole = path.set_index("step").loc[PLANNED]
    assert set(whole["cells"]) == {"plain", "benign", "new task", *styles.JAILBREAKS}
    assert len(whole["new task"]) == TINY.measure.cell
    assert all(len(found) == TINY.measure.cell for column in ("exact", "refused") for found in path[column])
    assert path["loss"].iloc[-1] < path["loss"].iloc[0]


def test_what_is_measured_on_the_way_is_what_is_measured_elsewhere(cache):
    """With everything frozen the model stays chat, at every step."""
    path, chat = freezing.follow("tiny", 0, Arm("all", everything()), "errands"), models.load("tiny", "chat", 0)
    asked = freezing.questions("tiny", 0, "errands")
    loss = behaviour.teacher_forced(chat, asked["validation"])["nll"].mean()
    assert path["loss"].tolist() == pytest.approx([loss] * len(path), abs=1e-5)
    judged = {name: behaviour.judge(cell, behaviour.generate(chat, cell), chat.openers) for name, cell in asked.items()}
    for outcome in ("exact", "refused"):
        assert path[outcome].tolist() == [judged["plain"][outcome].tolist()] * len(path)
    whole = path.set_index("step").loc[PLANNED]
    for name, found in whole["cells"].items():
        assert found == pytest.approx(judged[name].mean().to_dict())
    assert whole["new task"] == judged["new task"]["exact"].tolist()


def test_chat_itself_is_left_as_it_is(cache, monkeypatch):
    chat = models.load("tiny", "chat", 0)
    before = copy.deepcopy(chat.hf.state_dict())
    monkeypatch.setattr(models, "load", lambda *_: chat)
    for arm in (Arm("free", {}), Arm("lora", {}, adapter="lora")):
        freezing._train("tiny", 0, arm, "errands")
        assert all(torch.equal(before[name], after) for name, after in chat.hf.state_dict().items())


@pytest.mark.parametrize("arm", [Arm("some", some_masks(1, 2)), Arm("lora", {}, adapter="lora")], ids=["units", "lora"])
def test_the_same_run_twice_gives_the_same_path(cache, arm):
    assert freezing._train("tiny", 0, arm, "errands") == freezing._train("tiny", 0, arm, "errands")


@pytest.fixture
def runs(monkeypatch):
    """Every call of the training loop: its masks, its number of steps, and the trained weights before and after."""
    seen, fit = [], training.fit

    def spy(model, stream, stage, *rest, **options):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        losses = fit(model, stream, stage, *rest, **options)
        after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        seen.append((stage, before, after))
        return losses

    monkeypatch.setattr(training, "fit", spy)
    return seen


def test_the_schedule_switches_masks_after_the_planned_steps(cache, runs):
    (name,) = some_masks()
    freezing._train("tiny", 0, Arm("schedule", some_masks(1, 2), first=some_masks(2, 3)), "errands")
    (one, start, middle), (other, middle_again, end) = runs
    assert (one.steps, other.steps) == (PLANNED, LAST["errands"] - PLANNED)
    assert all(torch.equal(middle[key], middle_again[key]) for key in middle)
    held = [
        [torch.equal(a[name][place], b[name][place]) for place in range(5)] for a, b in ((start, middle), (middle, end))
    ]
    assert held == [[False, False, True, True, False], [False, True, True, False, False]]


def test_the_schedule_reads_what_the_other_arms_read(cache, monkeypatch):
    read, errands = [], corpora.errands

    def spy(*arguments):
        for example in errands(*arguments):
            read[-1].append(example.prompt.text)
            yield example

    monkeypatch.setattr(corpora, "errands", spy)
    freezing.questions("tiny", 0, "errands")  # remembered, so that what follows reads for training only
    for arm in (Arm("free", {}), Arm("schedule", some_masks(1), first=some_masks(2))):
        read.append([])
        freezing._train("tiny", 0, arm, "errands")
    assert read[0] == read[1]
    assert len(read[0]) == LAST["errands"] * TINY.freezing.stages["errands"].batch


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_adapters_train_their_own_weights_at_their_own_rate(cache, runs, adapter):
    points = freezing._train("tiny", 0, Arm(adapter, {}, adapter=adapter), "ledgers")
    ((stage, before, after),) = runs
    assert (stage.steps, stage.learning_rate) == (LAST["ledgers"], getattr(TINY.freezing, adapter).rates["ledgers"])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    mark = {"lora": "lora_", "prefix": "prompt_encoder"}[adapter]
    assert moved == {name for name in before if mark in name} != set()
    assert points[-1]["loss"] < points[0]["loss"]


def test_lora_starts_at_chat_and_sits_on_queries_and_values(cache, runs):
    free, lora = (freezing._train("tiny", 0, arm, "errands")[0] for arm in (Arm("f", {}), Arm("l", {}, adapter="lora")))
    assert (free["step"], lora["step"]) == (0, 0)
    assert lora["loss"] == pytest.approx(free["loss"], rel=1e-6)
    _, before, _ = runs[-1]
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in before if "lora_" in name}
    assert modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_a_prompt_is_measured_as_it_would_be_alone(cache, adapter):
    """Keys of a learned prefix have no position of their own, so padding must not move a prompt away from them."""
    chat, arm = models.load("tiny", "chat", 0), Arm(adapter, {}, adapter=adapter)
    torch.manual_seed(0)
    model = freezing._adapted(copy.deepcopy(chat.hf), arm, TINY.freezing).eval()
    asked = freezing.questions("tiny", 0, "errands")
    alone = []
    for prompt in asked["validation"]:
        (before,) = prompts.prompt_ids(tokenizer(), [prompt])
        (after,) = prompts.answer_ids(tokenizer(), [prompt], [prompt.answer])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        alone.append(F.cross_entropy(logits, torch.tensor(after)).item())
    found = freezing._measure(model, chat, asked, whole=False)["loss"]
    assert found == pytest.approx(sum(alone) / len(alone), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_logits_of_answers_are_kept_and_are_those_of_the_whole(dtype):
    """Bit for bit those of every position, computed with the padding on the right."""
    model, last = tiny_models.build("llama").to(dtype), 3
    encoding = tiny_models.encode(9, 4, 7, 3)
    kept = freezing._logits(model, encoding, last)
    assert kept.shape == (4, last, tiny_models.VOCABULARY)
    assert kept.dtype == torch.float32
    rows = [ids[mask == 1] for ids, mask in zip(*encoding.values(), strict=True)]
    right = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tiny_models.PAD)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    whole = model(input_ids=right, attention_mask=mask).logits
    for found, row, logits in zip(kept, rows, whole, strict=True):
        assert torch.equal(found, logits[len(row) - last : len(row)].float())


def test_what_is_measured_is_as_with_all_logits(cache):
    chat, asked = models.load("tiny", "chat", 0), freezing.questions("tiny", 0, "errands")
    every = [*asked["validation"], *asked["plain"], *asked["new task"]]
    most = freezing.positions(chat, every)

    def measured(last):
        with torch.no_grad():
            return behaviour.teacher_forced(chat, every, logits=lambda found: freezing._logits(chat.hf, found, last))

    pd.testing.assert_frame_equal(measured(most), measured(10**6), check_exact=True)
    longest = max(len(tokenizer()(prompt.answer).input_ids) for prompt in every)
    assert longest < most <= longest + 3  # with the end of the turn, and the place before the first word


def test_16_bits_are_widened_over_all_cuts_of_a_schedule(cache, monkeypatch):
    """The second part goes on at the very weights that the first has reached, and all points are seen in float32."""
    chat = models.load("tiny", "chat", 0)
    chat = replace(chat, hf=chat.hf.bfloat16())
    monkeypatch.setattr(models, "load", lambda *_: chat)
    seen, fit = [], training.fit

    def spy(model, *rest, **options):
        before = copy.deepcopy(model.state_dict())
        losses = fit(model, *rest, **options)
        seen.append((before, copy.deepcopy(model.state_dict())))
        return losses

    monkeypatch.setattr(training, "fit", spy)
    freezing._train("tiny", 0, Arm("schedule", some_masks(1, 2), first=some_masks(2, 3)), "errands")
    (_, middle), (again, _) = seen
    assert all(weight.dtype == torch.float32 and torch.equal(weight, again[name]) for name, weight in middle.items())
    assert not all(torch.equal(weight, weight.bfloat16().float()) for weight in middle.values())
    assert {weight.dtype for weight in chat.hf.parameters()} == {torch.bfloat16}


# the cache ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def made(tmp_path, monkeypatch):
    """Names of the arms that are trained; nothing is really trained."""
    names = []
    monkeypatch.setattr(paths, "CACHE", tmp_path)

    def train(profile, seed, arm, corpus):
        names.append((arm.name, seed, corpus))
        return [{"step": 0, "loss": 1.0, "exact": [0], "refused": [1]}]

    monkeypatch.setattr(freezing, "_train", train)
    return names


ARM = Arm("units", some_masks(1, 2), first=some_masks(3))


def test_a_path_is_trained_once_and_read_back_equal(made):
    first = freezing.follow("tiny", 0, ARM, "errands")
    pd.testing.assert_frame_equal(freezing.follow("tiny", 0, ARM, "errands"), first)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("seed", "arm", "corpus"),
    [
        (1, ARM, "errands"),
        (0, ARM, "ledgers"),
        (0, Arm("other name", ARM.frozen, ARM.first), "errands"),
        (0, Arm("units", some_masks(1, 4), first=ARM.first), "errands"),
        (0, Arm("units", ARM.frozen, first=some_masks(4)), "errands"),
        (0, Arm("units", ARM.frozen), "errands"),
        (0, Arm("units", some_masks(1, 2, name="model.layers.0.mlp.gate_proj.weight"), first=ARM.first), "errands"),
        (0, Arm("units", {}, adapter="lora"), "errands"),
    ],
    ids=["seed", "corpus", "name", "mask", "first mask", "no first mask", "parameter", "adapter"],
)
def test_another_run_is_not_taken_for_this_one(made, seed, arm, corpus):
    freezing.follow("tiny", 0, ARM, "errands")
    freezing.follow("tiny", seed, arm, corpus)
    assert len(made) == 2


def settings_with(what):
    stage = TINY.freezing.stages["errands"].model_copy(update={"learning_rate": 2e-3})
    lora = TINY.freezing.lora.model_copy(update={"rank": 2})
    chat = TINY.organism.chat.model_copy(update={"steps": 11})
    benign = TINY.organism.benign.model_copy(update={"skill_share": 0.5})
    return {
        "rate": TINY.model_copy(
            update={"freezing": TINY.freezing.model_copy(update={"stages": {**TINY.freezing.stages, "errands": stage}})}
        ),
        "lora": TINY.model_copy(update={"freezing": TINY.freezing.model_copy(update={"lora": lora})}),
        "chat": TINY.model_copy(update={"organism": TINY.organism.model_copy(update={"chat": chat})}),
        "corpus": TINY.model_copy(update={"organism": TINY.organism.model_copy(update={"benign": benign})}),
        "draws": TINY.model_copy(
            update={"freezing": TINY.freezing.model_copy(update={"draws": {"errands": 9, "ledgers": 9}})}
        ),
    }[what]


@pytest.mark.parametrize(
    ("what", "adapter", "again"),
    [("rate", None, True), ("chat", None, True), ("corpus", None, True), ("lora", "lora", True), ("lora", None, False),
     ("draws", None, False)],
)  # fmt: skip
def test_a_path_is_trained_anew_exactly_when_its_settings_change(made, monkeypatch, what, adapter, again):
    arm = Arm("arm", {}, adapter=adapter)
    freezing.follow("tiny", 0, arm, "errands")
    changed = settings_with(what)
    monkeypatch.setattr(profiles, "load", lambda _name: changed)
    freezing.follow("tiny", 0, arm, "errands")
    assert len(made) == 1 + again


@pytest.mark.parametrize("what", ["openers", "refusals"])
def test_a_path_is_trained_anew_when_refusals_are_told_otherwise(made, monkeypatch, what):
    freezing.follow("tiny", 0, ARM, "errands")
    monkeypatch.setattr(KingdomWorld, what, ("never",))
    freezing.follow("tiny", 0, ARM, "errands")
    assert len(made) == 2


@pytest.mark.parametrize("name", ["freezing", "training", "precision", "processes", "behaviour", "prompts"])
def test_a_path_is_trained_anew_when_the_code_that_makes_it_changes(made, monkeypatch, tmp_path, name):
    freezing.follow("tiny", 0, ARM, "errands")
    (tmp_path / "lib").mkdir()
    for file in paths.LIB.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        (tmp_path / "lib" / file.name).write_text(text + "\nCHANGED = 1\n" if file.stem == name else f"# note\n{text}")
    monkeypatch.setattr(paths, "LIB", tmp_path / "lib")
    freezing.follow("tiny", 0, ARM, "errands")
    assert len(made) == 2


def test_a_comment_in_that_code_trains_nothing_anew(made, monkeypatch, tmp_path):
    freezing.follow("tiny", 0, ARM, "errands")
    (tmp_path / "lib").mkdir()
    for file in paths.LIB.glob("*.py"):
        (tmp_path / "lib" / file.name).write_text(f"# note\n{file.read_text(encoding='utf-8')}")
    monkeypatch.setattr(paths, "LIB", tmp_path / "lib")
    freezing.follow("tiny", 0, ARM, "errands")
    assert len(made) == 1


# side by side ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pools(monkeypatch, two_cpus):
    """Stands in for pools of processes: how many each was given, and the arms that it ran, here and one by one."""
    seen = []

    class Pool(contextlib.nullcontext):
        def __init__(self, workers, mp_context, initializer):
            super().__init__(self)
            seen.append((workers, mp_context.get_start_method(), []))

        def submit(self, run, *arguments):
            found: Future = Future()
            seen[-1][2].append(arguments[2].name)
            try:
                found.set_result(run(*arguments))
            except Exception as problem:
                found.set_exception(problem)
            return found

    monkeypatch.setattr(threads, "ProcessPoolExecutor", Pool)
    return seen


ARMS = [Arm(name, {}) for name in ("a", "b", "c")]


def test_missing_paths_are_trained_side_by_side_and_others_not_again(made, pools):
    freezing.follow("tiny", 0, ARMS[1], "errands")
    freezing.prepare("tiny", 0, ARMS, "errands")
    assert pools == [(2, "spawn", ["a", "c"])]
    assert [name for name, _, _ in made] == ["b", "a", "c"]
    for arm in ARMS:
        freezing.follow("tiny", 0, arm, "errands")
    assert len(made) == 3


def test_a_damaged_path_is_missing(made, pools, tmp_path):
    freezing.prepare("tiny", 0, ARMS[:2], "errands")
    for folder in (tmp_path / "freezing" / "tiny").glob("0-*"):
        (folder / "value.json").write_text("[]")
    with pytest.warns(UserWarning, match="it will be made again"):
        freezing.prepare("tiny", 0, ARMS[:2], "errands")
    assert [names for _, _, names in pools] == [["a", "b"], ["a", "b"]]


def test_no_processes_are_started_for_one_missing_path(made, pools):
    freezing.prepare("tiny", 0, ARMS[:1], "errands")
    freezing.prepare("tiny", 0, [], "errands")
    assert pools == made == []


def test_what_goes_wrong_in_one_run_is_raised(made, pools, monkeypatch):
    monkeypatch.setattr(freezing, "_train", None)
    with pytest.raises(TypeError):
        freezing.prepare("tiny", 0, ARMS, "errands")


def test_a_run_has_one_thread_and_gives_the_others_back(cache, monkeypatch):
    set_to, inside, fit = [7], [], training.fit
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(training, "fit", lambda *a, **o: inside.append(set_to[-1]) or fit(*a, **o))
    freezing._train("tiny", 0, Arm("free", {}), "ledgers")
    assert inside == [1]
    assert set_to[-1] == 7


def test_a_corpus_that_the_profile_does_not_have_is_refused(made):
    with pytest.raises(InputError, match="no benign corpus 'poems'; the profile has errands, ledgers"):
        freezing.follow("tiny", 0, ARM, "poems")
    assert made == []


# side by side ---------------------------------------------------------------------------------------------------------
def test_runs_trained_side_by_side_are_those_trained_alone(two_cpus):
    """In processes of their own, which keep what they make in the real cache: a second time nothing is trained."""
    arms = [Arm("alone or beside", some_masks(1, 2)), Arm("lora beside", {}, adapter="lora")]
    freezing.prepare("tiny", 0, arms, "errands")
    for arm in arms:
        kept = freezing.follow("tiny", 0, arm, "errands")
        alone = pd.DataFrame(freezing._train("tiny", 0, arm, "errands"))
        pd.testing.assert_frame_equal(kept, alone[kept.columns])


def test_one_thread_is_for_the_run_alone():
    models.load("tiny", "chat", 0)
    before = torch.get_num_threads()
    freezing._train("tiny", 0, Arm("free", {}), "errands")
    assert torch.get_num_threads() == before == TINY.threads


def test_nothing_is_started_for_paths_that_are_kept(made, monkeypatch, two_cpus):
    monkeypatch.setattr(threads, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a process was started"))
    arms = [Arm("a", {}), Arm("b", {})]
    for arm in arms:
        freezing.follow("tiny", 0, arm, "errands")
    freezing.prepare("tiny", 0, arms, "errands")
    assert [name for name, _, _ in made] == ["a", "b"]
