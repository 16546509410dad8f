"""The table of the admin listener: see proxykit.tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NewType

from attrs import field, frozen

from proxykit.checks import (
    Check,
    Each,
    EndpointText,
    admin_fault,
    as_in,
    default_of,
    host_pattern,
    token_fault,
)
from proxykit.model import Config
from proxykit.strict import Problem, Wrong, found

#: Fields of these types are read by the hooks here. What a token is never stands in a message.
Token = NewType("Token", str)
TokenFile = NewType("TokenFile", str)

#: Bytes of a file that may have a token.
_LONGEST = 4096


def _is_host(text: str) -> bool:
    return text != "" and "*" not in text and host_pattern(f"[{text}]" if ":" in text else text)


@frozen
class AdminTable:
    """
    :ivar token_file: not its name, but the token in it.
    """

    listen: EndpointText
    token: Token = field(default=default_of(Config, "admin_token"))
    token_file: TokenFile = TokenFile("")
    hosts: tuple[str, ...] = as_in(
        Config, "admin_hosts", Each(Check("a host name or an address, without a port", _is_host))
    )

    def settings(self) -> dict[str, Any]:
        """The fields of a ``Config``.

        :raises Wrong: they do not go together.
        """
        token = self.token or self.token_file
        problems: list[Problem] = []
        if self.token and self.token_file:
            problems.append((("token_file",), "give token or token_file, not both"))
        if fault := admin_fault(self.listen, token):
            problems.append((("listen",), fault))
        if problems:
            raise Wrong(problems)
        return {"admin": self.listen, "admin_token": token, "admin_hosts": self.hosts}


def read_token(value: Any, _: object) -> str:
    """A token as it stands in the configuration."""
    if not isinstance(value, str) or (fault := token_fault(value)):
        raise Wrong.here(fault if isinstance(value, str) else "expected a string")
    return value


def read_token_file(value: Any, _: object) -> str:
    """The token that is in a file; white space around it is not of it."""
    if not isinstance(value, str):
        raise Wrong.here(f"expected the name of a file, not {found(value)}")
    try:
        with Path(value).open("rb") as file:
            content = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        # Not by its name: somebody may have put the token itself there.
        raise Wrong.here(f"the file cannot be read: {reason}") from None
    token = content.decode("latin-1").strip()
    fault = token_fault(token) if len(content) <= _LONGEST else f"expected at most {_LONGEST} bytes"
    if fault:
        raise Wrong.here(f"what is in the file is no token: {fault}")
    return token
