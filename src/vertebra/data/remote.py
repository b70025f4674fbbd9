"""A photo by its address: fetched whole, bounded in size and in time, and kept nowhere."""

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from vertebra.spec.errors import VertebraError

LARGEST = 64 << 20
"""Bytes; the largest photo of a camera is smaller."""
SILENCE, WHOLE = 15.0, 60.0
"""Seconds until a server's next word, and until its last."""
_PIECE = 1 << 16


def is_url(name: str) -> bool:
    """Whether that is a web address."""
    return name.lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Remote:
    """A photo on the web; `name` is its address."""

    name: str

    def read(self) -> bytes:
        """Its bytes. Raises `VertebraError`."""
        try:
            request = urllib.request.Request(self.name, headers={"User-Agent": "vertebra", "Accept": "image/*"})
            with _opener().open(request, timeout=SILENCE) as response:
                return self._whole(response)
        except urllib.error.HTTPError as error:
            error.close()
            raise VertebraError(f"{self.name}: cannot be fetched: {error.code} {error.reason}") from error
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # ValueError: no address, though it began as one
            reason = str(getattr(error, "reason", error)).strip() or type(error).__name__
            raise VertebraError(f"{self.name}: cannot be fetched: {' '.join(reason.split())}") from error

    def _whole(self, response: http.client.HTTPResponse) -> bytes:
        end, content = time.monotonic() + WHOLE, bytearray()
        while piece := response.read1(_PIECE):
            content += piece
            if len(content) > LARGEST:
                raise VertebraError(
                    f"{self.name}: is larger than {LARGEST >> 20} MiB; fetch it yourself, if you trust it"
                )
            if time.monotonic() > end:
                raise VertebraError(f"{self.name}: did not come within {WHOLE:.0f} seconds; fetch it yourself")
        announced = response.headers.get("Content-Length")
        if announced is not None and announced.isdigit() and len(content) < int(announced):
            raise VertebraError(f"{self.name}: the connection broke after {len(content)} of {announced} bytes")
        return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """Http and https alone: a redirection leads to no file of this disk, and to no other protocol."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
