"""The gradients of the trainer `learned`: those of autograd through the merge, and of finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from evomerge.learned.losses import item_losses
from evomerge.learned.vector_coefficients import CoefficientGradients, initial_vector_coefficients
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.optimisation.coefficients import roles_of
from evomerge.optimisation.student import Student
from tests.training.conftest import SOURCES
from tests.training.learned_family import GRANULARITIES, settings_of, with_options

LOSSES = ({"answers": 1}, {"experts": 1, "answers": 0}, {"entropy": 1, "answers": 0})
ALL_LOSSES = {"answers": 1.0, "experts": 0.5, "entropy": 0.3}


class Reference:
    """The loss as plain operations that autograd follows from the coefficients to the end, in float64."""

    def __init__(self, built, settings, coefficients):
        self.built = built
        self.settings = settings
        self.coefficients = coefficients
        self.vectors = self._vectors()

    def _vectors(self):
        """Source -> tensor name -> vector of the basis: the merge with weight 1 for one source, less the base."""
        built, settings = self.built, self.settings
        method = "task_arithmetic" if settings.granularity == "column" else settings.method
        extra = {"ties": {"density": settings.density}, "dare": {"drop_rate": 1 - settings.density}}
        found = {}
        for source in SOURCES:
            weights = [float(name == source) for name in SOURCES]
            parameters = resolve_parameters(method, {**extra.get(settings.basis, {}), "weight": weights}, len(SOURCES))
            tensors = RuleTensors(
                names=built.names,
                base=built.weights["base"],
                sources=[built.weights[name] for name in SOURCES],
                parameters=parameters,
                options=resolve_options(method, {}),
                seed=built.recipe().seed,
            )
            found[source] = {
                name: merged.double() - built.weights["base"][name].double()
                for name, merged in merge_rule(method, tensors)
            }
        return found

    def loss(self, values, texts, weights):
        """The weighted loss of all sources for coefficients by key."""
        merged = {}
        for key, names in self.coefficients.groups.items():
            for name in names:
                merged[name] = self.built.weights["base"][name].double() + sum(
                    value * self.vectors[source][name] for value, source in zip(values[key], SOURCES, strict=True)
                )
        losses = self.settings.losses
        total = 0.0
        for source, each in texts.items():
            own = {name: tensor.double() for name, tensor in self.built.weights[source].items()}
            terms = {"answers": [], "experts": [], "entropy": []}
            for text in each:
                rows = [self._log_likelihood(merged, row) for row in (text, *text.others)]
                terms["answers"].append(-torch.stack(rows).log_softmax(0)[0] if text.others else -rows[0])
                scores = self._scores(merged, text).log_softmax(-1)[text.counted(self.settings.positions)]
                temperature = self.settings.temperature
                sure = (self._scores(merged, text) / temperature).log_softmax(-1)[text.counted(self.settings.positions)]
                target = (self._scores(own, text) / temperature).log_softmax(-1)[text.counted(self.settings.positions)]
                terms["experts"] += (temperature**2 * (target.exp() * (target - sure)).sum(-1)).unbind()
                terms["entropy"] += (-(scores.exp() * scores).sum(-1)).unbind()
            for name, term in terms.items():
                total = total + weights[source] * getattr(losses, name) * torch.stack(term).mean()
        return total

    def _scores(self, weights, text):
        return functional_call(self.built.model, weights, (torch.tensor([text.tokens]),)).logits[0]

    def _log_likelihood(self, weights, text):
        scores = self._scores(weights, text).log_softmax(-1)
        return sum(scores[at, text.tokens[at + 1]] for at in text.counted("answer"))


def slopes_of(built, settings):
    """The coefficients, and dL/dc as the trainer takes it, with the texts and weights of the loss."""
    inputs = built.inputs(built.recipe("task_arithmetic", weight=0.3))
    student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
    roles = roles_of(inputs.model, {name: inputs.live[name] for name in student.names})
    coefficients = initial_vector_coefficients(
        inputs.initial, roles, settings, files=inputs.files, device=student.device
    )
    generator = torch.Generator().manual_seed(2)
    for value in coefficients.values.values():
        value += 0.1 * torch.randn(value.shape, generator=generator)
    coefficients.set_in(student)
    gradients = CoefficientGradients(coefficients, student)
    weights = {"left": 0.5, "middle": 0.2, "right": 0.3}
    with student.streamed_gradients(student.names, gradients.take):
        losses = item_losses(built.texts, student=student, settings=settings, weights=weights, gradients=True)
    return coefficients, gradients.totals, sum(weights[source] * loss for source, loss in losses.items()), weights


@pytest.mark.parametrize("kind", ["llama_tied", "llama", "gpt2"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("loss", [*LOSSES, ALL_LOSSES], ids=["answers", "experts", "entropy", "sum"])
def test_gradients_are_those_of_autograd_through_the_merge(family, kind, granularity, loss):
    built = with_options(family(kind, "float64"))
    settings = settings_of(built, granularity, loss=loss, temperature=1.5, initial=0.3)
    coefficients, slopes, total, weights = slopes_of(built, settings)
    reference = Reference(built, settings, coefficients)
    values = {key: value.double().requires_grad_() for key, value in coefficients.values.items()}
    expected = reference.loss(values, built.texts, weights)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-9)
    scale = max(float(value.grad.abs().max()) for value in values.values())
    for key, slope in slopes.items():
        torch.testing.assert_close(slope.double(), values[key].grad, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("basis", ["ties", "dare"])
@pytest.mark.parametrize("granularity", ["global", "groups", "tensor"])
def test_trimmed_and_dropped_vectors_have_the_gradients_of_autograd(family, basis, granularity):
    built = family("llama_tied", "float64")
    settings = settings_of(built, granularity, basis=basis, density=0.5, initial=0.3)
    coefficients, slopes, total, weights = slopes_of(built, settings)
    values = {key: value.double().requires_grad_() for key, value in coefficients.values.items()}
    expected = Reference(built, settings, coefficients).loss(values, built.texts, weights)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-9)
    for key, slope in slopes.items():
        torch.testing.assert_close(slope.double(), values[key].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_untied"])  # Llama's norms are float32 whatever the dtype: too coarse
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_agree_with_finite_differences(family, kind, granularity):
    built = with_options(family(kind, "float64"))
    settings = settings_of(built, granularity, loss=ALL_LOSSES, initial=0.3)
    coefficients, slopes, _, weights = slopes_of(built, settings)
    reference = Reference(built, settings, coefficients)
    values = {key: value.double() for key, value in coefficients.values.items()}
    generator = torch.Generator().manual_seed(4)
    for key in list(values)[::5]:
        direction = torch.randn(values[key].shape, generator=generator, dtype=torch.float64)

        def at(distance, key=key, direction=direction):
            with torch.no_grad():
                moved = {**values, key: values[key] + distance * direction}
                return float(reference.loss(moved, built.texts, weights))

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        assert float((slopes[key].double() * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("limit", [1, 12, 30])
def test_the_division_into_passes_changes_nothing_but_rounding(family, limit):
    built = with_options(family("llama", "float64"))
    whole = settings_of(built, loss=ALL_LOSSES, initial=0.3)
    parts = whole.model_copy(update={"max_tokens": limit})
    _, expected, loss, _ = slopes_of(built, whole)
    _, found, other, _ = slopes_of(built, parts)
    assert other == pytest.approx(loss, rel=1e-12)
    for key, slope in found.items():
        torch.testing.assert_close(slope, expected[key], rtol=1e-9, atol=1e-12)
