"""Search spaces: what may be merged and how. YAML files without code, bound to a model's tensors and sources."""

from evomerge.spaces.bound import BoundSpace, bind
from evomerge.spaces.space import SearchSpace, known_spaces, load_space

__all__ = ["BoundSpace", "SearchSpace", "bind", "known_spaces", "load_space"]
