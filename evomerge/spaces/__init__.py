"""Search spaces: what may be merged and how. YAML files without code; `evomerge.spaces.bound` gives them tensors."""

from evomerge.spaces.space import SearchSpace, known_spaces, load_space

__all__ = ["SearchSpace", "known_spaces", "load_space"]
