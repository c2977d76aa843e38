"""The gradients of the coefficients: against finite differences of an independent definition of the loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import functional_call

from evomerge.native import weighted_vectors
from evomerge.optimisation.coefficients import initial_coefficients, roles_of
from evomerge.optimisation.gradients import factor_gradients, stream_gradients
from evomerge.optimisation.mofo import Mofo
from evomerge.optimisation.student import Student
from evomerge.training.dam import entropy_loss, kl_loss, merged_weight, mse_loss
from tests.training.conftest import KINDS, SOURCES

ALL = ["linear", "bias", "norm", "embedding"]


class Caught(Exception):
    pass


@pytest.fixture
def catch(monkeypatch):
    """catch(training) -> the raw coefficients and their gradients of the first step."""
    caught = {}

    def step(self, gradients):
        caught.update({name: (self.values[name].clone(), gradients[name].clone()) for name in self.values})
        raise Caught

    monkeypatch.setattr(Mofo, "step", step)

    def run(training):
        with pytest.raises(Caught):
            next(training)
        return caught

    return run


def whole_loss(family, raw, phi, chosen, settings):
    """The loss of a step, source by source and without any padding, through a merge in float64."""
    merged = {
        name: merged_weight([family.weights[source][name] for source in SOURCES], list(value), phi)
        for name, value in raw.items()
    }

    def logits(tensors, text):
        tokens = torch.tensor([text.tokens])
        return functional_call(family.model, tensors, (), {"input_ids": tokens, "use_cache": False}).logits

    total = 0
    for source, texts in chosen.items():
        size = sum(len(text.tokens) for text in texts)
        for text in texts:
            student, teacher = logits(merged, text), logits(family.weights[source], text)
            mask = torch.ones(student.shape[:2])
            share = len(text.tokens) / size  # of the tokens of the batch
            if settings.get("losses", {}).get("mse"):
                total = total + share * mse_loss(student, teacher, mask)
            else:
                total = total + share * kl_loss(student, teacher, mask) / len(texts)
            if weight := settings.get("losses", {}).get("entropy"):
                total = total + share * entropy_loss(student, mask, weight=weight)
    return total


def check(family, catch, phi, **settings):
    chosen = {}
    settings = {"losses": {"kl": 1, "similarity": 0}} | settings
    training = family.start(phi=phi, trainable=ALL, clip=1e6, **settings)
    caught = catch(training)
    from evomerge.optimisation.batches import CalibrationBatches
    from evomerge.training.dam_settings import DamSettings

    calibration = CalibrationBatches(family.texts, DamSettings.model_validate(settings), 5)
    for source, indices in calibration.step(0).items():
        chosen[source] = [family.texts[source][index] for index in indices]
    raw = {name: value.double() for name, (value, _) in caught.items()}
    generator = torch.Generator().manual_seed(0)
    for name, (value, gradient) in caught.items():
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        step = 2e-3  # the norms of the models compute in float32 whatever the dtype
        up, down = (
            whole_loss(family, raw | {name: raw[name] + sign * step * direction}, phi, chosen, settings)
            for sign in (1, -1)
        )
        expected = float(up - down) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=2e-4), name
    return {name: tuple(gradient.shape) for name, (_, gradient) in caught.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_of_every_kind_of_coefficient_agree_with_finite_differences(family, catch, kind):
    built = family(kind, "float64")
    shapes = check(built, catch, "identity")
    assert set(shapes) == set(built.names)


@pytest.mark.parametrize("phi", ["tanh", "sigmoid", "relu"])
def test_gradients_through_phi_agree_with_finite_differences(family, catch, phi):
    check(family("qwen2", "float64"), catch, phi)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2},
        {"batch_size": 2, "max_tokens": 1},  # one backward pass for each source
        {"losses": {"kl": 0, "mse": 1, "similarity": 0}},
        {"losses": {"kl": 1, "entropy": 0.1, "similarity": 0}},
    ],
)
def test_gradients_of_other_losses_and_batches_agree_with_finite_differences(family, catch, settings):
    check(family("llama", "float64"), catch, "identity", **settings)


def test_roles_come_from_the_types_of_modules(family):
    expected = {
        "llama": {
            "model.embed_tokens.weight": ("embedding", (16,)),
            "lm_head.weight": ("linear", (16,)),
            "model.layers.0.self_attn.k_proj.weight": ("linear", (16,)),
            "model.layers.1.mlp.down_proj.weight": ("linear", (24,)),
            "model.norm.weight": ("norm", (16,)),
        },
        "llama_tied": {"model.embed_tokens.weight": ("linear", (16,))},
        "qwen2": {"model.layers.0.self_attn.q_proj.bias": ("bias", ())},
        "gpt2": {
            "transformer.h.0.attn.c_attn.weight": ("linear", (16, 1)),
            "transformer.h.0.attn.c_attn.bias": ("bias", ()),
            "transformer.h.0.mlp.c_proj.weight": ("linear", (64, 1)),
            "transformer.h.0.ln_1.weight": ("norm", (16,)),
            "transformer.h.0.ln_1.bias": ("bias", ()),
            "transformer.wpe.weight": ("embedding", (16,)),
            "transformer.wte.weight": ("linear", (16,)),  # it is the head as well
        },
    }
    for kind, roles in expected.items():
        built = family(kind)
        found = roles_of(built.model, built.live)
        for name, (role, shape) in roles.items():
            assert (found[name].kind, found[name].shape) == (role, shape), name


@pytest.mark.parametrize("shape", [(7,), (5, 1), (), (1,), (5, 7)])
def test_factor_gradients_are_sums_of_products_in_any_block_size(monkeypatch, shape):
    generator = torch.Generator().manual_seed(0)
    gradient, *weights = (torch.randn(5, 7, generator=generator) for _ in range(4))
    expected = torch.stack(
        [(gradient * weight).double().sum_to_size((1,) * (2 - len(shape)) + shape) for weight in weights]
    )
    for piece in (1, 14, 1000):
        monkeypatch.setattr("evomerge.elementwise.column_linear.CPU_PIECE", piece)
        found = factor_gradients(gradient, weights, shape)
        torch.testing.assert_close(found, expected.reshape(3, *shape).float())


def test_at_no_time_do_two_parameters_hold_a_gradient(family):
    built = family("llama")
    holding = []

    def look(parameter):
        holding.append(sum(tensor.grad is not None for tensor in built.live.values()))

    for tensor in built.live.values():
        tensor.requires_grad_(True)
        tensor.register_post_accumulate_grad_hook(look)  # comes before the training's own
        tensor.requires_grad_(False)
    built.train(steps=1)
    linear = [name for name in built.names if name.endswith("proj.weight") or name == "lm_head.weight"]
    assert len(holding) == len(linear)
    assert set(holding) == {1}
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in built.live.values())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_tensor_that_is_live_in_float32_holds_the_rounding_of_a_bfloat16_merge(family, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(weighted_vectors, "_compiled", lambda: None)
    built = family("llama", "bfloat16", "float32")
    norm = "model.norm.weight"
    built.model.model.norm.weight.data = built.model.model.norm.weight.data.float()
    inputs = built.inputs(built.recipe("task_arithmetic", weight=0.3))
    student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
    student.set_rules(inputs.initial.rules)
    student.write()
    expected = student.live[norm].clone()
    assert torch.equal(expected, expected.bfloat16().float())
    student.set_vectors(SOURCES, [{norm: torch.tensor(0.3)}] * len(SOURCES))
    student.write()
    assert torch.equal(student.live[norm], expected)
    roles = roles_of(inputs.model, {name: inputs.live[name] for name in student.names})
    given = {"include_base": False, "uniform": False, "trainable": ("norm",), "phi": "tanh"}
    start = built.recipe("linear")
    student.set_merge(initial_coefficients(start, roles, **given, files=built.files, device=student.device))
    student.write()
    assert torch.equal(student.live[norm], student.live[norm].bfloat16().float())


@pytest.mark.parametrize(("kind", "sparse"), [("llama", True), ("llama_tied", False), ("gpt2_untied", True)])
def test_an_untied_embedding_gives_the_rows_that_were_read(family, kind, sparse):
    built = family(kind)
    inputs = built.inputs(built.recipe("task_arithmetic", weight=0.3))
    student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    found = {}
    streams = {"rows": student.streamed_gradients, "whole": partial(stream_gradients, student.live)}
    for way, streamed in streams.items():
        with streamed(student.names, lambda name, gradient, way=way: found.update({(way, name): gradient})):
            built.model(tokens, labels=tokens, use_cache=False).loss.backward()
    embeddings = {name for (way, name), gradient in found.items() if way == "rows" and gradient.is_sparse}
    table = next(name for name in student.names if name.endswith(("embed_tokens.weight", "wte.weight")))
    assert (table in embeddings) is sparse
    for name in embeddings:
        rows, whole = found["rows", name], found["whole", name]
        assert rows.coalesce().values().shape[0] <= tokens.numel()
        torch.testing.assert_close(rows.to_dense(), whole)
        for shape in ((), whole.shape[1:]):
            given = [source[name] for source in inputs.weights.values()], shape, inputs.weights["base"][name]
            torch.testing.assert_close(factor_gradients(rows, *given), factor_gradients(whole, *given))
    assert not any(getattr(module, "sparse", False) for module in built.model.modules())


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2"])
def test_the_padding_token_has_its_gradient_where_it_stands_in_a_text(family, catch, kind):
    token = family(kind).texts["left"][0].tokens[1]
    found = []
    for index in (None, token):  # as `pad_token_id` of many models, which is their end of a turn too
        built = family(kind)
        embedding = built.model.get_input_embeddings()
        embedding.padding_idx = index
        found.append(dict(catch(built.start(trainable=ALL, batch_size=6))))
        assert embedding.padding_idx == index
    plain, padded = found
    for name, (_, gradient) in plain.items():
        torch.testing.assert_close(padded[name][1], gradient, msg=name)
