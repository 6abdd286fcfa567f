import json

import pytest
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from edgekit.checkpoint import open_checkpoint
from edgekit.graph import build_graph
from edgekit.quantize import quantize
from edgekit.scheme import parse_recipe
from edgekit.train import VARIANTS, DispersionLoss, DispersionTrainer, Rounding, rounded
from edgekit.train.rounding import round_weights, rounded_matrices
from edgekit.train.trainer import divergence


class Text(Dataset):
    """Sixteen sequences of twelve tokens."""

    def __init__(self):
        self.ids = torch.randint(64, (16, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def make_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True))


def make_trainer(folder, *, model=None, steps=4, batch=4, accumulate=1, rate=1e-2, **terms):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        learning_rate=rate,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_steps=2,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return DispersionTrainer(model=model or make_model(), args=arguments, train_dataset=Text(), **terms)


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(a, b, **tolerance):
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_the_loss_is_cross_entropy_plus_the_weighted_term_and_evaluation_is_cross_entropy_alone(tmp_path):
    dispersion = DispersionLoss(tokens=12)  # all positions: nothing is random
    trainer = make_trainer(tmp_path, dispersion=dispersion, dispersion_weight=0.3)
    batch = {name: torch.stack([Text()[i][name] for i in range(4)]) for name in ("input_ids", "labels")}
    model = trainer.model.train()
    outputs = model(**batch, output_hidden_states=True)
    expected = outputs.loss + 0.3 * dispersion(outputs.hidden_states)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)
    torch.testing.assert_close(trainer.compute_loss(model.eval(), dict(batch)), outputs.loss)


def test_two_halves_of_a_batch_accumulated_are_the_whole_batch(tmp_path):
    terms = {"dispersion": DispersionLoss(tokens=12), "dispersion_weight": 0.5}
    rounding = Rounding(("q2g32",), weight=0.7)
    whole = make_trainer(tmp_path / "a", steps=1, batch=8, rate=1.0, rounding=rounding, **terms)
    halves = make_trainer(tmp_path / "b", steps=1, batch=4, accumulate=2, rate=1.0, rounding=rounding, **terms)
    gradients = []
    for trainer in (whole, halves):
        taken = {}
        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, taken=taken: taken.update(
                {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
            )
        )
        trainer.train()
        gradients.append(taken)
    assert gradients[0]
    assert_same(*gradients, rtol=1e-3, atol=1e-6)


def test_rounding_adds_the_gradient_of_the_rounded_models_divergence(tmp_path):
    trainer = make_trainer(tmp_path, rounding=Rounding(("q2g32",), weight=2.0))
    trainer.state.max_steps = 4
    trainer.current_gradient_accumulation_steps = 1
    batch = {name: torch.stack([Text()[i][name] for i in range(4)]) for name in ("input_ids", "labels")}
    trainer.training_step(trainer.model, dict(batch))
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}

    model = make_model().train()
    loss = model(**batch).loss
    loss.backward()
    with torch.no_grad():
        wanted = model(input_ids=batch["input_ids"]).logits
    with rounded(rounded_matrices(model, parse_recipe("q2g32"))):
        (2.0 * divergence(wanted, model(input_ids=batch["input_ids"]).logits, None)).backward()
    assert_same(found, {name: parameter.grad for name, parameter in model.named_parameters()})


def test_divergence_is_the_sum_worked_out_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3.
    p, q = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.25, 0.75]]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(divergence(p, q, None), expected)
    padded = torch.cat([q, q + torch.tensor([5.0, 0.0])], 1)
    torch.testing.assert_close(divergence(p.expand(-1, 2, -1), padded, torch.tensor([[1, 0]])), expected)


def test_rounding_waits_for_its_share_of_the_steps(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, rounding=Rounding(("q2g32",), start=0.5))
    trainer.train()
    told = [("rounding" in entry) for entry in trainer.state.log_history if "loss" in entry]
    assert told == [False, False, True, True]


def test_on_a_grid_the_float_model_is_the_rounded_one(tmp_path):
    trainer = make_trainer(tmp_path, rounding=Rounding(("q2g32",), weight=2.0, grid="q4g32"))
    trainer.state.max_steps = 4
    trainer.current_gradient_accumulation_steps = 1
    batch = {name: torch.stack([Text()[i][name] for i in range(4)]) for name in ("input_ids", "labels")}
    before = weights_of(trainer.model)
    trainer.training_step(trainer.model, dict(batch))
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    assert_same(weights_of(trainer.model), before, rtol=0, atol=0)  # what is trained stays full

    model = make_model().train()
    with torch.no_grad():
        for parameter, scheme in rounded_matrices(model, parse_recipe("q4g32")).values():
            parameter.copy_(round_weights(parameter, scheme))
    model(**batch).loss.backward()
    with torch.no_grad():
        wanted = model(input_ids=batch["input_ids"]).logits
    with rounded(rounded_matrices(model, parse_recipe("q2g32"))):
        (2.0 * divergence(wanted, model(input_ids=batch["input_ids"]).logits, None)).backward()
    assert_same(found, {name: parameter.grad for name, parameter in model.named_parameters()})


def test_weights_settled_on_a_grid_lose_nothing_when_they_are_compiled_to_it(tmp_path):
    trainer = make_trainer(tmp_path, rounding=Rounding(("q2g32",), start=0.5, grid="q4g32"))
    trainer.train()
    held = trainer.evaluate(Text())["eval_loss"]
    trainer.settle()
    assert trainer.evaluate(Text())["eval_loss"] == held
    trainer.model.half().save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    quant = quantize(build_graph(checkpoint, context=8), checkpoint, parse_recipe("q4g32"))
    assert set(quant.errors.values()) == {0.0}
    with torch.no_grad():
        full = trainer.model.float()(Text().ids, labels=Text().ids).loss
    assert float(full) == pytest.approx(held, rel=1e-4)


def test_arms_that_differ_in_the_loss_see_the_same_batches(tmp_path):
    seen = []
    for name, terms in {"plain": {}, "dispersed": {"dispersion": DispersionLoss(tokens=4)}}.items():
        trainer = make_trainer(tmp_path / name, **terms)
        batches = []
        step = trainer.training_step
        trainer.training_step = lambda model, inputs, *rest, step=step, batches=batches: (
            batches.append(inputs["input_ids"].clone()),
            step(model, inputs, *rest),
        )[1]
        trainer.train()
        seen.append(torch.stack(batches))
    assert torch.equal(*seen)


def test_a_run_that_was_stopped_ends_with_the_same_weights_as_one_that_was_not(tmp_path):
    terms = {"dispersion": DispersionLoss(tokens=4), "rounding": Rounding(("q3g32", "q2g32"))}
    through = make_trainer(tmp_path / "through", **terms)
    through.train()
    make_trainer(tmp_path / "stopped", **terms).train()  # its checkpoint 2 is what a stopped run leaves
    state = json.loads((tmp_path / "stopped/checkpoint-2/trainer_state.json").read_text())
    assert state["global_step"] == 2
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "stopped", **terms)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped/checkpoint-2"))
    assert_same(weights_of(through.model), weights_of(resumed.model), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_term_ends_lower_than_in_the_plain_twin(tmp_path, variant):
    probe = torch.stack([Text()[i]["input_ids"] for i in range(8)])
    measure = DispersionLoss(variant, tokens=12)
    ends = []
    for weight in (0.0, 10.0):
        trainer = make_trainer(tmp_path / str(weight), steps=8, dispersion=measure, dispersion_weight=weight)
        trainer.train()
        ends.append(measure(trainer.model.eval()(input_ids=probe, output_hidden_states=True).hidden_states).item())
    plain, dispersed = ends
    assert dispersed < plain
