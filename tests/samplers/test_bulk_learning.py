"""Learning whole populations at once gives the bits of learning point by point."""

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from evomerge.evolution.cma_strategy import KeyedNormal, Strategy
from evomerge.evolution.unit_cube import UnitCube

LINEAR = {"x": FloatDistribution(-1.0, 2.0), "fixed": FloatDistribution(0.5, 0.5), "y": FloatDistribution(0.1, 0.7)}
MIXED = {**LINEAR, "z": FloatDistribution(1e-3, 1.0, log=True), "n": IntDistribution(0, 4)}
WIDE = {"x": FloatDistribution(-1.5e308, 1.5e308), "y": FloatDistribution(0.1, 0.7)}


def bits_of_states(dimensions, populations):
    """Mean and a draw after each population, which is learned in the order of the distance to a point."""
    normal = KeyedNormal(1)
    strategy = Strategy(np.full(dimensions, 0.5), 0.2, len(populations[0]), bins=[0] * dimensions, normal=normal)
    states = []
    for number, points in enumerate(populations):
        ranked = sorted(points, key=lambda point: float(np.sum((point - 0.3) ** 2)))
        normal.key(1, number)
        strategy.tell(ranked, [float(rank) for rank in range(len(ranked))])
        normal.key(0, number)
        states.append((strategy.mean.tobytes(), strategy.draw().tobytes()))
    return states


@pytest.mark.parametrize("dimensions", [1, 2, 12])
def test_steps_are_shortened_together_as_pycma_shortens_each(dimensions, monkeypatch):
    generator = np.random.default_rng(1)
    far = generator.uniform(size=(30, 8, dimensions))
    far[::3] = np.round(far[::3])  # at the bounds
    near = 0.5 + 0.1 * generator.standard_normal((30, 8, dimensions))
    populations = [list(points) for points in np.concatenate([far, np.clip(near, 0.0, 1.0)])]
    together = bits_of_states(dimensions, populations)
    monkeypatch.setattr(Strategy, "_genotypes", lambda self, points: [])  # pycma makes them
    assert bits_of_states(dimensions, populations) == together


@pytest.mark.parametrize("distributions", [LINEAR, MIXED, WIDE])
def test_a_point_is_found_where_the_cube_contains_it(distributions):
    cube = UnitCube(distributions)
    inside = {name: distribution.high for name, distribution in distributions.items()}
    between = {**inside, "x": 0.1, "y": 0.3}
    for params in (inside, between, {**inside, "x": 1}):
        assert cube.contains(params)
        assert cube.find(params).tobytes() == cube.encode(params).tobytes()
    without = {name: value for name, value in inside.items() if name != "y"}
    for params in (without, *({**inside, "y": value} for value in (0.71, np.nan, np.inf, "0.3", None))):
        assert not cube.contains(params)
        assert cube.find(params) is None
