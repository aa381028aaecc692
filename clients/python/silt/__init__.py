"""Talks to siltd: feed text without end, ask at any moment what was read.

    with silt.Client() as client:
        client.open("log")
        with client.feed("log", producer="my-app") as feed:
            feed.write("text of any length")
        print(client.ask("log", "What happened?", wait=True).text())

AsyncClient has the same calls for asyncio. Errors are silt.Error and its kinds.
"""

from ._client import AsyncAnswer, AsyncClient
from ._errors import (Busy, Denied, Error, Exists, Gap, InternalError, Invalid, Lost, NoSpace,
                      NotFound, ShuttingDown, Silent, TooLarge, Unreachable, Unsupported)
from ._feed import AsyncFeed
from ._sync import Answer, Client, Feed
from ._types import (Done, Grant, Keys, Loss, Opened, Pin, Pins, ProcessStat, Sampling, Source,
                     StreamStat, Tier)

__version__ = "0.1.0"

__all__ = [
    "Answer", "AsyncAnswer", "AsyncClient", "AsyncFeed", "Busy", "Client", "Denied", "Done",
    "Error", "Exists", "Feed", "Gap", "Grant", "InternalError", "Invalid", "Keys", "Loss",
    "Lost", "NoSpace", "NotFound", "Opened", "Pin", "Pins", "ProcessStat", "Sampling",
    "ShuttingDown", "Silent", "Source", "StreamStat", "Tier", "TooLarge", "Unreachable",
    "Unsupported",
]
