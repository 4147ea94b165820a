"""What an app may store. The person may store anything."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, col, func, select

from pocketllm.storage.errors import QuotaExceeded
from pocketllm.storage.tables import PERSON, TextOwner, UploadedFile

#: What each text and each file counts beside its content, so that empty ones count, too.
ROW_BYTES = 500


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The most texts that an app may add in 24 hours, and the most bytes of texts and files that it may have."""

    texts_per_day: int
    bytes: int

    def check(self, session: Session, owner: str, now: datetime, *, texts: int = 0, nbytes: int) -> None:
        """Raise QuotaExceeded unless the owner may store this much more, in the transaction of this session."""
        if owner == PERSON:
            return
        day = col(TextOwner.sent_at).between(now - timedelta(days=1), now)
        of_texts = select(func.count().filter(day), func.coalesce(func.sum(TextOwner.bytes), 0))
        today, stored = session.exec(of_texts.where(TextOwner.owner == owner)).one()
        if texts and today + texts > self.texts_per_day:
            most = f"{self.texts_per_day:,} texts in 24 hours (setting app_texts_per_day)"
            raise QuotaExceeded(f"The app {owner!r} may add {most}. Try again later.")
        of_files = select(func.coalesce(func.sum(UploadedFile.size + ROW_BYTES), 0))
        stored += session.exec(of_files.where(UploadedFile.owner == owner)).one()
        if stored + nbytes > self.bytes:
            most = f"{self.bytes / 1e6:,.0f} MB of texts and files (setting app_bytes)"
            remedy = f"Delete files (DELETE /v1/files/ID), or its texts (`pocketllm texts delete --app {owner}`)."
            raise QuotaExceeded(f"The app {owner!r} may store {most}. {remedy}")
