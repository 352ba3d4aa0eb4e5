"""The check of costs: shapes against published sizes, shares from planted times, and every step at a tiny size."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib import prompts, shape_check, shapes, tracing
from lib.errors import InputError
from lib.shape_check import Bench

CPU = torch.device("cpu")


@pytest.mark.parametrize(("shape", "parameters"), [("8b", 8_030_261_248), ("1b", 1_235_814_400)])
def test_shapes_have_the_published_number_of_parameters(shape, parameters):
    with torch.device("meta"):
        hf = LlamaForCausalLM(LlamaConfig(**shapes.SHAPES[shape]))
    assert sum(weight.numel() for weight in hf.parameters()) == parameters
    assert hf.config.max_position_embeddings == 131072
    rope = hf.config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("llama3", 500000.0)
    assert hf.config.tie_word_embeddings == (shape == "1b")


def test_the_small_shape_is_a_tenth_of_a_billion():
    with torch.device("meta"):
        hf = LlamaForCausalLM(LlamaConfig(**shapes.SHAPES["0.1b"]))
    assert 0.09e9 < sum(weight.numel() for weight in hf.parameters()) < 0.12e9


@pytest.fixture(scope="module")
def model():
    return shapes.build("tiny", CPU)


def test_models_are_made_in_bfloat16_with_sdpa_and_the_same_twice(model):
    assert {weight.dtype for weight in model.hf.parameters()} == {torch.bfloat16}
    assert model.hf.config._attn_implementation == "sdpa"
    again = shapes.build("tiny", CPU).hf.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.hf.state_dict().items())


def test_prompts_have_the_lengths_asked_for(model):
    lengths = [8, 20, 13]
    data = shapes.examples(model, lengths, seed=0)
    rows = prompts.prompt_ids(model.tokenizer, [example.prompt for example in data])
    assert [len(row) for row in rows] == lengths
    answers = prompts.answer_ids(model.tokenizer, [e.prompt for e in data], [e.answer for e in data])
    assert {len(row) for row in answers} == {shapes.ANSWER + 1}
    assert max(max(row) for row in rows + answers) < model.hf.config.vocab_size
    assert len({tuple(row[2:]) for row in rows}) == 3
    drawn = shapes.lengths(shapes.PLANS["8b"], 700)
    assert len(drawn) == 700
    assert 30 <= min(drawn) < 40 < 190 < max(drawn) <= 200


def test_a_twin_has_the_same_weights_in_other_modules():
    own = shapes.build("tiny", CPU)
    plain = shapes.twin(own.hf)
    theirs = dict(plain.named_parameters())
    assert all(weight is theirs[name] for name, weight in own.hf.named_parameters())
    tracing.forward(own.traced, prompts.pad_left([[5, 6, 7]], 0), [("resid", 0)])
    assert all("forward" in vars(module) for module in own.hf.modules())  # wrapped, one instance at a time
    assert not any("forward" in vars(module) for module in plain.modules())


# planted times --------------------------------------------------------------------------------------------------------
def test_shares_are_those_of_planted_times():
    bench = Bench(CPU, shapes.PLANS["tiny"])
    bench.share("reading", [1.0, 2.0, 6.0], [2.0, 2.5, 5.0], ">= 0.9")
    assert bench.rows == [
        {"name": "reading", "value": 0.8, "unit": "of plain", "goal": ">= 0.9", "n": 3, "spread": [0.5, 1.2]}
    ]


def test_actions_alternate_and_the_first_round_is_not_counted(monkeypatch):
    """A clock that moves by what the action of that round is planted to take."""
    now, order = [0.0], []
    planted = {"a": iter([50.0, 1.0, 3.0]), "b": iter([70.0, 4.0, 8.0])}
    monkeypatch.setattr(shape_check.time, "perf_counter", lambda: now[0])

    def action(name):
        def act():
            order.append(name)
            now[0] += next(planted[name])

        return act

    bench = Bench(CPU, shapes.PLANS["tiny"])
    assert bench.alternating(action("a"), action("b")) == [[1.0, 3.0], [4.0, 8.0]]
    assert order == ["a", "b"] * 3


def test_a_gpu_is_waited_for_before_and_after_what_is_timed(monkeypatch):
    events = []
    cuda = SimpleNamespace(synchronize=lambda device: events.append("wait"))
    monkeypatch.setattr(shape_check.torch, "cuda", cuda)
    Bench(torch.device("cuda"), shapes.PLANS["tiny"]).seconds(lambda: events.append("work"))
    assert events == ["wait", "work", "wait"]


def test_peak_memory_of_a_gpu_is_told_step_by_step(monkeypatch):
    peaks, resets = iter([16.1e9, 54e9]), []
    cuda = SimpleNamespace(
        max_memory_allocated=lambda device: next(peaks), reset_peak_memory_stats=lambda device: resets.append(device)
    )
    monkeypatch.setattr(shape_check.torch, "cuda", cuda)
    bench = Bench(torch.device("cuda"), shapes.PLANS["tiny"])
    bench.peak("reading")
    bench.peak("SNIP")
    assert [(row["name"], row["value"], row["unit"]) for row in bench.rows] == [
        ("peak memory: reading", 16.1, "GB"), ("peak memory: SNIP", 54.0, "GB"),
    ]  # fmt: skip
    assert len(resets) == 2


# the whole ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("shape") / "out.json"
    assert shape_check.main(["--size", "tiny", "--device", "cpu", "--out", str(path)]) == 0
    return path


def test_every_step_runs_and_leaves_a_row(result):
    found = json.loads(result.read_text())
    names = [row["name"] for row in found["rows"]]
    for part in ("plain forward", "in memory", "store on disk", "residual space", "unit scores", "SNIP", "relevance"):
        assert sum(part in name for name in names) == 1
    assert any("a fine-tuning step of tiny" in name for name in names)
    plan = shapes.PLANS["tiny"]
    counts = {row["name"]: row["n"] for row in found["rows"]}
    assert counts["a fine-tuning step of tiny, 1 unit in 10 frozen, of forward and backward"] == plan.steps
    for row in found["rows"]:
        assert sorted(row) == ["goal", "n", "name", "spread", "unit", "value"]
        low, high = row["spread"]
        assert 0 < low <= row["value"] <= high
    about = found["about"]
    assert about["size"] == "tiny"
    assert about["dtype"] == "bfloat16"
    assert about["torch"] == torch.__version__
    assert about["device"]
    assert about["parameters"] == sum(w.numel() for w in shapes.build("tiny", CPU).hf.parameters())


def test_the_table_has_every_row(result, capsys):
    assert shape_check.main(["--out", str(result), "--table"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(result.read_text())
    assert found["about"]["device"] in shown
    for row in found["rows"]:
        assert f"| {row['name']} | {row['value']:g} {row['unit']} |" in shown
    assert "| >= 0.9 |" in shown


def test_what_cannot_be_done_is_said(result, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert shape_check.main(["--size", "tiny", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert shape_check.main([]) == 2
    assert "name a --size" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown size"):
        shape_check.run("70b", CPU)


def test_training_that_leaves_the_device_is_not_reported_as_that_devices(monkeypatch):
    def elsewhere(model, stream, stage, step, label, frozen, watch):
        model.to("meta")

    monkeypatch.setattr(shape_check.training, "fit", elsewhere)
    with pytest.raises(InputError, match="took the model from cpu to meta"):
        shape_check.tuning(Bench(CPU, shapes.PLANS["tiny"]))
