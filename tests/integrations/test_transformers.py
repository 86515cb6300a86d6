from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunegate
from prunegate import CheckpointError, GatedModel, LoopError, PrunegateWarning, compact, wrap
from prunegate.integrations.trainer_model import answer_trainer

transformers = pytest.importorskip("transformers")
PruningCallback = pytest.importorskip("prunegate.integrations.transformers").PruningCallback

ROWS, BATCH = 64, 8


def vit(**changed: Any) -> Any:
    config = {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_labels": 3,
        "hidden_dropout_prob": 0.1,
    }
    return transformers.ViTForImageClassification(transformers.ViTConfig(**{**config, **changed}))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=24, n_layer=2, n_head=2, use_cache=False)
    return transformers.GPT2LMHeadModel(config)  # its head is tied to its embedding


def gated_vit(seed: int = 0) -> GatedModel:
    torch.manual_seed(seed)
    return wrap(vit(), {"pixel_values": torch.zeros(2, 1, 8, 8)})


def images() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 1, 8, 8, generator=generator)
    return [{"pixel_values": pixels[i], "labels": i % 3, "of_no_use": i} for i in range(ROWS)]


def trainer(gated: nn.Module, callback: Any, folder: Path, data: Any = None, **changed: Any) -> Any:
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changed,
    }
    args = transformers.TrainingArguments(output_dir=str(folder), **settings)
    data = images() if data is None else data
    return transformers.Trainer(gated, args, train_dataset=data, eval_dataset=data, callbacks=[callback])


def test_training_ends_with_hard_masks_that_meet_the_budget(tmp_path: Path) -> None:
    gated = gated_vit()
    running = trainer(gated, PruningCallback(gated, 0.5), tmp_path, logging_steps=4)
    running.train()
    assert gated.gates.are_fixed
    assert 0.3 < gated.realised_cost() / gated.dense_cost() <= 0.5
    logged = [entry for entry in running.state.log_history if "loss" in entry]
    assert len(logged) == 4
    assert [entry["prunegate_tau"] for entry in logged] == sorted(
        (entry["prunegate_tau"] for entry in logged), reverse=True
    )
    assert logged[-1]["prunegate_expected_macs"] < logged[0]["prunegate_expected_macs"] <= gated.dense_cost()
    pixels = torch.stack([row["pixel_values"] for row in images()])
    model = compact(gated).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pixels).logits, gated.eval()(pixel_values=pixels).logits)


def test_trainer_evaluates_a_gated_model_as_its_dense_one(tmp_path: Path) -> None:
    gated = gated_vit()
    running = trainer(gated, PruningCallback(gated), tmp_path)
    assert running.label_names == ["labels"]
    dense = transformers.Trainer(gated.dense_copy(), running.args, eval_dataset=images())
    assert running.evaluate()["eval_loss"] == pytest.approx(dense.evaluate()["eval_loss"], rel=1e-5)


def test_gates_step_once_for_all_accumulated_batches(tmp_path: Path) -> None:
    gated = gated_vit()
    callback = PruningCallback(gated)
    running = trainer(gated, callback, tmp_path, gradient_accumulation_steps=3)
    counts = []
    callback.on_step_end = lambda args, state, control, **kwargs: counts.append(callback.gates.count)
    running.train()
    assert counts == list(range(1, running.state.max_steps + 1)) == list(range(1, 7))


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_trainers_optimiser_and_its_decay_leave_the_logits_alone(optim: str, tmp_path: Path) -> None:
    gated = gated_vit()
    callback = PruningCallback(gated)
    running = trainer(gated, callback, tmp_path, weight_decay=0.9, optim=optim)
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    logits = gated.gates.logits

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            before.append(logits.detach().clone())  # added later, so called after the gates' step

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            after.append(logits.detach().clone())

    running.add_callback(Watch())
    running.train()
    held = {id(p) for group in running.optimizer.param_groups for p in group["params"]}
    assert id(logits) in held, "nothing was tested"
    assert len(before) == 16
    assert not torch.equal(before[0], before[1])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_resumed_training_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole = gated_vit()
    trainer(whole, PruningCallback(whole), tmp_path / "whole").train()

    first = gated_vit()
    saving = {"save_strategy": "steps", "save_steps": 5}
    running = trainer(first, PruningCallback(first), tmp_path / "first", **saving)

    class Stop(transformers.TrainerCallback):  # type: ignore[misc]
        def on_save(self, *args: Any, **kwargs: Any) -> None:
            raise KeyError("the power is gone")

    running.add_callback(Stop())
    with pytest.raises(KeyError):
        running.train()
    resumed = gated_vit(1)
    callback = PruningCallback(resumed)
    again = trainer(resumed, callback, tmp_path / "first", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-5"))
    pairs = zip(whole.named_parameters(), resumed.parameters(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []
    assert all(torch.equal(mask, resumed.masks()[name]) for name, mask in whole.masks().items())


def test_language_model_with_a_tied_head_trains_saves_and_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = {"input_ids": torch.randint(30, (2, 8))}
    gated = wrap(gpt2(), words)
    rows = [{"input_ids": (row := torch.randint(30, (8,))), "labels": row} for _ in range(16)]
    running = trainer(gated, PruningCallback(gated), tmp_path, rows, save_strategy="epoch", label_smoothing_factor=0.1)
    running.train()
    compact(gated)
    other = wrap(gpt2(), words)
    again = trainer(other, PruningCallback(other), tmp_path, rows)
    again._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    names = [name for name, tensor in gated.named_parameters() if not torch.equal(tensor, other.get_parameter(name))]
    assert names == []
    assert other.tau == gated.tau
    assert torch.equal(other.gates.generator.get_state(), gated.gates.generator.get_state())


def test_answering_the_trainer_changes_neither_what_is_computed_nor_how_it_is_saved() -> None:
    gated = gated_vit().eval()
    pixels = torch.randn(3, 1, 8, 8)
    before, state = gated(pixel_values=pixels).logits, gated.state_dict()
    answer_trainer(gated)
    answer_trainer(gated)
    assert isinstance(gated, GatedModel)
    assert torch.equal(gated(pixel_values=pixels).logits, before)
    assert inspect.signature(gated.forward) == inspect.signature(gated.dense_copy().forward)
    assert gated.config is gated.model.config
    assert all(isinstance(value, torch.Tensor) for value in gated.state_dict().values())
    gated.load_state_dict(state)  # from before: a plain one
    gated.load_state_dict(gated.state_dict())
    assert wrap(vit(), {"pixel_values": pixels}).load_state_dict(state)


def test_other_model_in_the_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="found a Trainer of another model, a ViTForImageClassification"):
        trainer(vit(), PruningCallback(gated_vit()), tmp_path)


def test_model_without_gates_is_refused() -> None:
    with pytest.raises(LoopError, match="found a ViTForImageClassification, expected a gated model"):
        PruningCallback(vit())


def test_callback_that_is_added_to_a_trainer_later_is_refused(tmp_path: Path) -> None:
    gated = gated_vit()
    running = trainer(gated, transformers.TrainerCallback(), tmp_path)
    running.add_callback(PruningCallback(gated))
    with pytest.raises(LoopError, match="added to an existing Trainer"):
        running.train()


def test_restoring_callbacks_by_their_arguments_is_refused(tmp_path: Path) -> None:
    gated = gated_vit()
    with pytest.raises(LoopError, match="restore_callback_states_from_checkpoint=True, expected False"):
        trainer(gated, PruningCallback(gated), tmp_path, restore_callback_states_from_checkpoint=True)


def language_model(positions: int = 24) -> Any:
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = transformers.GPT2Config(vocab_size=30, n_positions=positions, n_embd=24, n_layer=2, n_head=2, **ends)
    return transformers.GPT2LMHeadModel(config)


def hardened(model: nn.Module, inputs: Any) -> GatedModel:
    gated = wrap(model.eval(), inputs)
    gated.harden(prunegate.Budget("macs", 0.6))
    return gated.eval()


def test_a_gated_language_model_generates_under_its_masks() -> None:
    torch.manual_seed(0)
    words = torch.randint(1, 30, (2, 6))
    gated = hardened(language_model(), {"input_ids": words})
    settings = {"max_new_tokens": 8, "do_sample": False}
    found = gated.generate(words, **settings)
    ids = words
    for _ in range(8):  # decoding anew at each step, without a cache
        with torch.no_grad():
            ids = torch.cat([ids, gated(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, ids)
    assert torch.equal(found, compact(gated).model.eval().generate(words, **settings))
    dense = gated.dense_copy().generate(words, **settings)
    assert not torch.equal(found, dense), "nothing was tested: the masks change nothing"


def test_generate_in_training_mode_draws_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = wrap(language_model().eval(), {"input_ids": torch.ones(2, 6, dtype=torch.long)}).train()
    draws, draw = [], gated.gates.draw
    monkeypatch.setattr(gated.gates, "draw", lambda: draws.append(draw()) or draws[-1])
    assert gated.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3, do_sample=False).shape == (1, 7)
    assert len(draws) == 1


def test_a_model_without_generate_says_so() -> None:
    with pytest.raises(AttributeError, match="generate"):
        gated_vit().generate(torch.zeros(1))


@pytest.mark.parametrize("again", ["itself", "deepcopy", "pickle", "loaded"])
def test_save_pretrained_of_a_compact_model_refuses_with_the_remedy(again: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = compact(hardened(vit(), {"pixel_values": torch.zeros(2, 1, 8, 8)}))
    model = result.model
    if again == "deepcopy":
        model = copy.deepcopy(model)
    elif again == "pickle":
        model = pickle.loads(pickle.dumps(model))
    elif again == "loaded":
        result.save(tmp_path / "small.safetensors")
        model = prunegate.load(tmp_path / "small.safetensors", model=vit())
    with pytest.raises(CheckpointError) as raised:
        model.save_pretrained(tmp_path / "folder")
    said = str(raised.value)
    assert said.startswith("save_pretrained: ViTForImageClassification is a compact model, expected a dense one.")
    for part in ("cannot describe the unequal widths", "result.save(", "prunegate.load(", "Nothing was written"):
        assert part in said
    assert not (tmp_path / "folder").exists()
    vit().save_pretrained(tmp_path / "dense")  # other models of the class are left alone


def test_the_trainer_saves_a_compact_model_to_resume_from_and_is_told_what_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = compact(hardened(vit(), {"pixel_values": torch.zeros(2, 1, 8, 8)}))
    callback = transformers.TrainerCallback()
    running = trainer(result.model, callback, tmp_path, save_strategy="steps", save_steps=8)
    with pytest.warns(PrunegateWarning, match="can only resume training with the same compact model"):
        running.train()
    other = copy.deepcopy(result.model)
    with torch.no_grad():
        other.classifier.weight.zero_()
    trainer(other, transformers.TrainerCallback(), tmp_path)._load_from_checkpoint(str(tmp_path / "checkpoint-16"))
    assert torch.equal(other.classifier.weight, result.model.classifier.weight)
    gated = wrap(result.model.eval(), {"pixel_values": torch.zeros(2, 1, 8, 8)})  # it can be pruned again
    gated.harden(prunegate.Budget("macs", 0.8))
    with pytest.raises(CheckpointError):
        compact(gated).model.save_pretrained(tmp_path / "folder")
