"""Licences of models: read from their files, and what they mean for a merge. No legal advice.

Holds: the table of licences and their terms, the licence of a model directory, the judgement on several of them.
Not here: sources and their weights (`checkpoints/`), the card of an export (`artefacts/`).
Start reading at: `declared_license.py`, then `license_judgement.py`.
"""

from evomerge.licenses.declared_license import LEGAL, DeclaredLicense, read_license
from evomerge.licenses.license_judgement import (
    NO_ADVICE,
    LicenseJudgement,
    SourceLicense,
    judge_licenses,
    name_problems,
)

__all__ = [
    "LEGAL",
    "NO_ADVICE",
    "DeclaredLicense",
    "LicenseJudgement",
    "SourceLicense",
    "judge_licenses",
    "name_problems",
    "read_license",
]
