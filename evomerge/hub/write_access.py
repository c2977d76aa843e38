"""The right of a token to write to a repository, as far as the hub's answer about the token tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from evomerge.messages import listed

_READERS: Final = ("read", "no_access")  # roles in an organisation
_FINE: Final = "fineGrained"


def lacks_write_access(account: Mapping[str, Any], repo_id: str) -> str | None:
    """The reason why a token cannot write to a repository, with what to do; None where it can or the answer is of a
    form that we do not know: then the hub itself refuses the upload.

    Args:
        account: what the hub answers to `whoami`.
        repo_id: OWNER/NAME.
    """
    token = _mapping(_mapping(account.get("auth")).get("accessToken"))
    if token.get("role") == "read":
        return f"the token {token.get('displayName', '')!r} can only read; make one with write access"
    owner = repo_id.partition("/")[0]
    writable = _writable(account) if token else None
    if writable is not None and owner.lower() not in map(str.lower, writable):
        return f"the account of the token may not write to {owner!r}, but to {listed(writable)}; push to one of these"
    if token.get("role") == _FINE and not _is_allowed(_mapping(token.get(_FINE)), owner, repo_id):
        return (
            f"the fine-grained token {token.get('displayName', '')!r} may not write to the repositories of {owner!r}; "
            "give it that right in the settings of the hub, or use another token"
        )
    return None


def _writable(account: Mapping[str, Any]) -> list[str] | None:
    """The user of a token and the organisations that it may write to; None where the answer does not tell."""
    user, organisations = account.get("name"), account.get("orgs")
    if account.get("type") != "user" or not isinstance(user, str) or not isinstance(organisations, list):
        return None
    known = [_mapping(each) for each in organisations]
    if not all(isinstance(each.get("name"), str) for each in known):
        return None
    # Roles in groups of resources may allow what the role in the whole organisation does not.
    return [
        user,
        *(each["name"] for each in known if each.get("roleInOrg") not in _READERS or "resourceGroups" in each),
    ]


def _is_allowed(rights: Mapping[str, Any], owner: str, repo_id: str) -> bool:
    everywhere, scopes = rights.get("global"), rights.get("scoped")
    if not isinstance(everywhere, list) or not isinstance(scopes, list):
        return True
    places = (owner.lower(), repo_id.lower())
    return _writes(everywhere) or any(
        _writes(_mapping(scope).get("permissions"))
        and str(_mapping(_mapping(scope).get("entity")).get("name", owner)).lower() in places
        for scope in scopes
    )


def _writes(permissions: object) -> bool:
    """Whether content of repositories may be written: `repo.write`, and names like it."""
    if not isinstance(permissions, list):
        return True
    return any(str(each).startswith("repo.") and str(each).endswith("write") for each in permissions)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
