"""Search spaces: what may be merged and how, as YAML files without code.

- Holds: the files as data, their binding to a model's tensors and sources, params decoded to recipes and back.
- Does not hold: the choice of params, which is a sampler's, and tensors' values.
- Start reading at: `space.py`, then `space_checks.py` and `BoundSpace.decode` in `bound.py`.
"""

from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_files import known_spaces, load_space

__all__ = ["SearchSpace", "known_spaces", "load_space"]
