"""Faults of the hub and of the network as our errors: who has to do something about them, and what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from evomerge.errors import Interrupted, InvalidInput
from evomerge.messages import first_line

# The error of all requests in the client that huggingface_hub is built on, whichever that is.
_REQUEST_ERROR: Final[type[BaseException]] = HfHubHTTPError.__mro__[1]
_PASSING: Final = (408, 425, 429)  # statuses below 500 that another try may not meet


@contextmanager
def hub_faults(action: str, *, repository: str, state: str) -> Iterator[None]:
    """Turns what the hub's client raises in its block into our errors.

    Args:
        action: the work of the block, in words: "the upload".
        repository: id of the repository.
        state: what exists by now, in words: "nothing was made".

    Raises:
        InvalidInput: the hub refuses: token, rights, the name of the repository, the card.
        Interrupted: the network broke, or the hub is out of order; the same command again may succeed.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InvalidInput(
            f"--push {repository} needs the network, but HF_HUB_OFFLINE is set; unset it, or leave --push out ({state})"
        ) from error
    except (_REQUEST_ERROR, OSError, RuntimeError, ValueError) as error:
        raise _translated(error, action, repository, state) from error


def _translated(error: BaseException, action: str, repository: str, state: str) -> InvalidInput | Interrupted:
    own_words = (ValueError, PermissionError)  # of the client, and of its upload protocol where rights are missing
    if isinstance(error, own_words) and not isinstance(error, HfHubHTTPError):
        return InvalidInput(f"the hub refuses {action} to {repository}: {' '.join(str(error).split())}; {state}")
    refusal = next((each for each in _causes(error) if isinstance(each, HfHubHTTPError)), None)
    status = refusal.response.status_code if refusal is not None else None
    if refusal is not None and status is not None and status < 500 and status not in _PASSING:
        reason = _reason(status, refusal.server_message, repository)
        return InvalidInput(f"the hub refuses {action} to {repository}: {reason}; {state}")
    reason = f"it answered {status}" if status is not None else first_line(_root(error))
    return Interrupted(
        f"the connection to the hub broke during {action} to {repository} ({reason}); {state}. Run the same command "
        "again: it sends what the hub has not got yet"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _root(error: BaseException) -> Exception:
    *_, last = (each for each in _causes(error) if isinstance(each, Exception))
    return last


def _reason(status: int, message: str | None, repository: str) -> str:
    """The reason of a refusal, and what to do.

    Args:
        message: of the hub.
    """
    owner = repository.partition("/")[0]
    advice = {
        401: "it does not know the token; set HF_TOKEN to a valid one, or run `hf auth login`",
        403: f"the token may not write there; give it write access to {owner!r}, or push to another owner",
        404: f"there is no owner {owner!r}, or no repository that the token may see",
        412: "somebody else changed the repository meanwhile; run the same command again",
    }.get(status, f"status {status}")
    return f"{advice} (the hub says: {' '.join(message.split())})" if message else advice
