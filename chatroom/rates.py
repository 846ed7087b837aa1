"""How often one token may call: a bucket each, in this process's memory. Only the event loop's thread comes here."""

from collections import OrderedDict
from time import monotonic

from django.conf import settings

from .errors import TooMany

MOST_BUCKETS = 10_000


class Buckets:
    """Whoever was idle for a while has the whole burst again, so the longest idle ones are forgotten when there are too many."""

    def __init__(self) -> None:
        self.known: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def take(self, token: str) -> None:
        """Raises TooMany, with when to come again."""
        # No secret is kept for this, nor a text as long as somebody likes.
        key, time = hash(token), monotonic()
        left, since = self.known.pop(key, (settings.API_BURST, time))
        left = min(settings.API_BURST, left + (time - since) * settings.API_RATE)
        self.known[key] = (max(left - 1, 0), time) if left >= 1 else (left, time)
        if len(self.known) > MOST_BUCKETS:
            self.known.popitem(last=False)
        if left < 1:
            expected = f"expected at most {settings.API_RATE} a second, after {settings.API_BURST} at once"
            raise TooMany(f"too many requests with this token: {expected}", after=(1 - left) / settings.API_RATE)


buckets = Buckets()
