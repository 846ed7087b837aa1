"""One effect per key: the answer is stored in the effect's transaction, and a repeat gets it again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError
from django.db.models import JSONField, Value

from .errors import Invalid, KeyReused
from .models import IdempotencyRecord
from .prepared import Prepared
from .rows import insert_in_time
from .unit import one_unit

LONGEST_KEY, LONGEST_ACT = 200, 60


RECORD = Prepared[IdempotencyRecord](lambda principal, act, key: IdempotencyRecord.objects.filter(principal=principal, act=act, key=key))


@dataclass(frozen=True)
class Once:
    """The key a request carries, in the scope of its principal and act. Without a key every request is new."""

    principal: str
    act: str
    key: str
    body: Any

    def run(self, effect: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
        """The effect's status and answer; of two equal requests at the same instant the second gets the first one's."""
        if len(self.key) > LONGEST_KEY or not (self.key.isascii() and self.key.isprintable()):
            raise Invalid(f"Idempotency-Key {self.key[:60]!r}: expected at most {LONGEST_KEY} printable ASCII characters")
        try:
            with one_unit():
                status, answer = effect()
                if self.key:
                    answer = self.remember(status, answer)
        except Exception as error:
            # A repeat: the first one's effect is why this one is refused, or its record is in the way. Its answer is the answer to both.
            if self.key and (found := self.recall()):
                return found
            if isinstance(error, IntegrityError):
                raise Invalid(f"the request contradicts what is stored: {error}") from error
            raise
        return status, answer

    def remember(self, status: int, answer: Any) -> Any:
        answer = json.loads(json.dumps(answer, cls=DjangoJSONEncoder))  # times as text: what is stored is what is answered
        record = IdempotencyRecord(
            principal=self.principal, act=self.stored_act, key=self.key, body_hash=self.body_hash, status_code=status, answer=answer
        )
        if answer is None:
            # As a value, because no content (204) must be stored as JSON's null, not as none at all.
            record.answer = Value(None, JSONField())
            record.save()
        else:
            insert_in_time(record)
        return answer

    def recall(self) -> tuple[int, Any] | None:
        record = RECORD.first(principal=self.principal, act=self.stored_act, key=self.key)
        if record is None:
            return None
        if record.body_hash != self.body_hash:
            raise KeyReused(f"Idempotency-Key {self.key[:60]!r} was used for another body: expected the same body, or a new key")
        return record.status_code, record.answer

    @property
    def stored_act(self) -> str:
        """An act names what it is about, as the caller wrote it: that may be longer than our column, or no text at all."""
        is_plain = len(self.act) <= LONGEST_ACT and self.act.isprintable()
        return self.act if is_plain else hashlib.sha256(self.act.encode(errors="surrogatepass")).hexdigest()[:LONGEST_ACT]

    @property
    def body_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.body, sort_keys=True, default=str).encode(errors="surrogatepass")).hexdigest()
