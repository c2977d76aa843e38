"""Exports on the Hugging Face hub. Nothing is sent anywhere unless a command asks for it by `--push`.

Holds: the repository that an export goes to, checked before anything is made, and the upload in one commit.
Not here: reading models from the hub (`checkpoints/location.py`), the files of an export (`artefacts/`).
Start reading at: `hub_repository.py`.
"""

from evomerge.hub.hub_repository import HubRepository, PushedExport

__all__ = ["HubRepository", "PushedExport"]
