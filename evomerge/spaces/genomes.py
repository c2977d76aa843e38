"""The genomes that a space may name, each with what binds it."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.catalogue import TensorCatalogue
from evomerge.genomes.genome_settings import GenomeSettings, LfsSettings
from evomerge.spaces.bound_genome import BoundGenome
from evomerge.spaces.evolutionary_space import bind_evolutionary
from evomerge.spaces.lfs_space import bind_lfs


def bind_genome(
    genome: GenomeSettings, catalogue: TensorCatalogue, sources: Sequence[str], *, semantics: str
) -> BoundGenome:
    """Give a genome its tensors and sources.

    Raises:
        InvalidInput: it fits neither the model's layers nor its names, or not this number of sources.
    """
    settings = genome.chosen
    if isinstance(settings, LfsSettings):
        return bind_lfs(settings, catalogue, sources, semantics=semantics)
    return bind_evolutionary(settings, catalogue, sources, semantics=semantics)
