"""An expert that is opened in the form of its base, where its ref allows that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace

from evomerge.checkpoints.source import Source, open_source
from evomerge.errors import InvalidInput
from evomerge.fitting.fitted_source import fit_source
from evomerge.recipe import ModelRef


def open_fitted(
    ref: ModelRef,
    *,
    base: Source,
    allow: Collection[str] = (),
    trust_fingerprint: bool = False,
    fingerprinted: bool = True,
) -> Source:
    """Opens a model that is merged with the base, see `open_source`; in the base's form where its policies say so.

    The fingerprint of one that had to be changed depends on that of the base and on the policies.

    Raises:
        InvalidInput: as `open_source` and `fit_source`; or a policy that does not exist.
    """
    if ref.tokenizer is None and ref.missing is None:
        return open_source(
            ref, allow=allow, like=base, trust_fingerprint=trust_fingerprint, fingerprinted=fingerprinted
        )
    check_policies(ref)
    trusted = ref.fingerprint if trust_fingerprint else None
    own = ref if trusted else replace(ref, fingerprint=None)
    source = open_source(
        own,
        allow=allow,
        like=base,
        trust_fingerprint=trust_fingerprint,
        fingerprinted=fingerprinted or ref.fingerprint is not None,
    )
    fitted = fit_source(base, source)
    if trusted:
        return fitted
    known = source.ref.fingerprint if fitted is source else _fingerprint(base, source)
    if ref.fingerprint not in (None, known):
        raise InvalidInput(
            f"source {ref.name!r}: {ref.location} or its base has changed: the fingerprint is {known}, expected "
            f"{ref.fingerprint}"
        )
    return replace(fitted, ref=replace(ref, fingerprint=known))


def check_policies(ref: ModelRef) -> None:
    """Raises InvalidInput where a model has a policy that does not exist."""
    for name, policy in (("tokenizer", ref.tokenizer), ("missing", ref.missing)):
        if policy not in (None, "base"):
            raise InvalidInput(
                f"source {ref.name!r}: {name}: {policy} is no policy; write {name}: base, or leave it out"
            )


def _fingerprint(base: Source, source: Source) -> str | None:
    if base.ref.fingerprint is None or source.ref.fingerprint is None:
        return None
    content = [source.ref.fingerprint, base.ref.fingerprint, source.ref.tokenizer, source.ref.missing]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
