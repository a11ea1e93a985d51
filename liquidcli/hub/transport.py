"""Talking to the hub by its library's client: limited in time, who may see the token, failures as our exceptions.

Knows HTTP codes and the library's exceptions. Does not know what is fetched nor where it belongs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import DiskSpaceError, LiquidError, NetworkError, NotFoundError, UsageError

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]

TRUST = "LIQUID_TRUSTED_ENDPOINT"  # a mirror, an address as in HF_ENDPOINT, that may see the token
AGAIN = "run the same command again: it goes on where it stopped"
_ONLINE = "liquid list shows what is already here; online again, run the same command"
_LOGIN = "run: hf auth login (or set HF_TOKEN)"
_HUB_HOSTS = ("huggingface.co", "hf.co")
_PASSING_STATUS = (408, 416, 425, 429, 500, 502, 503, 504)
_PASSING = {"TimeoutException", "NetworkError", "RemoteProtocolError"}  # of the library's HTTP client, by any version


def within(seconds: float, what: str, work: Callable[[], Result]) -> Result:
    """The result of `work`, or NetworkError after `seconds`: name look-ups know no limit of their own."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise NetworkError(f"{what} did not answer within {seconds:g} seconds", hint=_ONLINE)
    return outcome["result"]


def is_passing(error: BaseException) -> bool:
    """Could the same request succeed in a moment?"""
    response = getattr(error, "response", None)
    if isinstance(error, LiquidError):
        return False
    if response is not None:
        return response.status_code in _PASSING_STATUS
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    return isinstance(error, ConnectionError) or bool({kind.__name__ for kind in type(error).__mro__} & _PASSING)


def wait_asked_for(error: BaseException) -> float:
    """Retry-After in seconds; 0 where nobody asks for it."""
    response = getattr(error, "response", None)
    return 0.0 if response is None else _retry_after_s(response)


def _retry_after_s(response: Any) -> float:
    value = response.headers.get("retry-after", "").strip()
    return float(value) if value.isdecimal() else 0.0


def request_headers(url: str) -> dict[str, str]:
    """The hub library's headers; the token only for the hub itself and a mirror that was named as trusted."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=token_for(url))


def token_for(url: str) -> bool | None:
    """What the hub library takes for `token`: None where it may send the one it knows, False where it must not."""
    host = urlsplit(url).hostname or ""
    if urlsplit(url).scheme == "https" and (host in _HUB_HOSTS or host.endswith(".huggingface.co")):
        return None
    trusted = os.environ.get(TRUST, "")
    return None if trusted and _origin(trusted) == _origin(url) else False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Inside, the hub library's exceptions about `what` become ours."""
    from huggingface_hub import errors

    try:
        yield
    except LiquidError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise NetworkError(f"{what} is not on this machine and HF_HUB_OFFLINE is set", hint="unset it") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{what} cannot be the name of a repository") from error
    except errors.HfHubHTTPError as error:
        raise refused(what, error.response) from error
    except errors.LocalEntryNotFoundError as error:
        raise NetworkError(f"the connection broke while {what} was fetched", hint=AGAIN) from error
    except UnicodeEncodeError as error:
        raise UsageError(
            "the hub token holds letters that no token has", hint="hf auth login (or mend HF_TOKEN)"
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise _broken(what, error) from error


def refused(what: str, response: Any) -> LiquidError:
    """An HTTP status, in words."""
    status = response.status_code
    if status in (401, 403):
        return NetworkError(f"access to {what} was refused ({status}): {_why(response)}", hint=_login(what, response))
    if status == 407:
        return NetworkError(f"the proxy refused to ask for {what} (407)", hint="put its password into HTTPS_PROXY")
    if status in (404, 410):
        hint = "check the address" if "://" in what else "check the spelling of its owner and name, or look at its page"
        return NotFoundError(f"there is no {what} there ({status})", hint=hint)
    if status == 429:
        hint = f"wait {_retry_after_s(response) or 60:.0f} seconds and run it again; hf auth login raises the limit"
        return NetworkError(f"too many requests (429) while asking for {what}", hint=hint)
    return NetworkError(f"the other side failed ({status}) while asked for {what}", hint="run the command again later")


def _why(response: Any) -> str:
    if response.headers.get("x-error-code") == "GatedRepo":
        return "it is gated"
    return "it is private, gated or misspelled"


def _login(what: str, response: Any) -> str:
    from huggingface_hub import constants, get_token

    url = str(response.request.url)
    if get_token() and token_for(url) is False and url.startswith(constants.ENDPOINT):
        return f"your token goes to huggingface.co alone; if {constants.ENDPOINT} is yours, set {TRUST} to it"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", what):
        return f"accept its terms on https://huggingface.co/{what} if it has any, then {_LOGIN}"
    return f"accept its terms on its page if it has any, then {_LOGIN}"


def _broken(what: str, error: Exception) -> LiquidError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(
            f"the disk became full while {what} was fetched; the part that came is kept", hint="liquid prune"
        )
    if isinstance(error, OSError) and number and not isinstance(error, ConnectionError):
        hint = "set HF_HOME (for addresses LIQUID_HOME) to a folder of yours"
        return LiquidError(f"{what} could not be kept: {error.strerror}: {error.filename or 'a file'}", hint=hint)
    if type(error).__name__ in ("UnsupportedProtocol", "InvalidURL"):
        return NetworkError(f"{what} could not be fetched: {error}", hint="check HF_ENDPOINT: https://huggingface.co")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        said = f"{what} could not be fetched: the other side's certificate is not trusted here"
        return NetworkError(said, hint="name your proxy's certificates in SSL_CERT_FILE")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return NetworkError(f"the connection ended before {what} was whole", hint=AGAIN)
    return NetworkError(f"{what} could not be fetched: {_reason(error)}", hint=_ONLINE)


def _reason(error: Exception) -> str:
    """In the system's words, without its numbers."""
    said = re.sub(r"\[Errno -?\d+\] *", "", str(error)).strip()
    words = said[:1].lower() + said[1:] if said[1:2].islower() else said
    return f"no connection ({words})" if "Connect" in type(error).__name__ else words or type(error).__name__
