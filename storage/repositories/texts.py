"""The owner's texts: storing, listing, counting, deleting, and assigning them to jobs."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, ScalarSelect, SQLColumnExpression, func
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import aliased
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, delete, select, update
from sqlmodel.sql.expression import SelectOfScalar

from pocketllm.storage.repositories import passages
from pocketllm.storage.repositories.adapters import undecided, withdrawn_jobs
from pocketllm.storage.repositories.base import MODEL, Repository, found, in_use, page
from pocketllm.storage.repositories.quotas import ROW_BYTES, Quota
from pocketllm.storage.tables import (
    ADDED,
    CANDIDATE,
    FILE,
    PERSON,
    DeletedText,
    Job,
    JobText,
    Preference,
    Text,
    TextOwner,
    WatchedFile,
)
from pocketllm.storage.words import count_words

#: One text in this many is held out of training.
HELD_OUT_ONE_IN = 10
#: Of little new text a job holds out more: this many texts, with at most this share of the words (bench.promotion).
MIN_HELD_OUT, MAX_HELD_OUT_SHARE = 12, 0.5
#: The least words of old text that a job replays, if there are as many.
MIN_REPLAY_WORDS = 5000


@dataclass(frozen=True, kw_only=True)
class NewText:
    """A new text."""

    text: str  #: the prompt of a completion; a chat as by `chat_text`
    source: str
    completion: str | None = None
    label: str | None = None
    messages: list[dict[str, Any]] | None = None
    held_out: bool | None = None  #: None: by its content


@dataclass(frozen=True, kw_only=True)
class Added:
    """The result of adding texts: an id for each text, in order, and the number of new ones."""

    ids: tuple[str, ...]
    created: int

    @property
    def duplicates(self) -> int:
        """The number of texts that existed, or were repeated in the request."""
        return len(self.ids) - self.created


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """The number of texts, and of words that no job of the model in use has learned, nor its last one tried to."""

    texts: int
    new_words: int


@dataclass(frozen=True)
class SourceCount:
    """How much text there is from a source."""

    source: str
    texts: int
    words: int
    new_words: int  #: that no job of the model in use has learned


def text_id(new: NewText) -> str:
    """The id of a text: a hash of its source and content, so that the same text from the same source is one."""
    # 0xff does not occur in UTF-8, so the encoding is unambiguous: the first zero byte separates source and content.
    named = new.source.encode().replace(b"\0", b"\xff") + b"\0" + _content(new)
    return f"text-{hashlib.sha256(named).hexdigest()[:24]}"


def is_held_out(new: NewText) -> bool:
    """Whether a text is held out: a pure function of its content, and so the same on every device."""
    return int.from_bytes(hashlib.sha256(_content(new)).digest()[:4]) % HELD_OUT_ONE_IN == 0


def _content(new: NewText) -> bytes:
    """A text without its source; 0xff begins a completion, a label or messages."""
    content = new.text.encode()
    chat = None if new.messages is None else json.dumps(new.messages, ensure_ascii=False, sort_keys=True)
    for name, more in ((b"completion", new.completion), (b"label", new.label), (b"messages", chat)):
        if more is not None:
            content += b"\xff" + name + b"\0" + more.encode()
    return content


def chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A chat as plain text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class TextStore(Repository):
    """Every query about texts."""

    def add(self, texts: Sequence[NewText], *, now: datetime, owner: str = PERSON) -> Added:
        """Store all of the texts or none, as its owner's, too. They are on disk when this returns."""
        return self.add_each([(texts, owner)], now=now)[0]

    def add_each(self, requests: Sequence[tuple[Sequence[NewText], str]], *, now: datetime) -> list[Added]:
        """Store the texts of several requests, with their owners, all or none. Raises QuotaExceeded."""
        with self._database.write() as session:
            return [add_texts(session, texts, [owner] * len(texts), now, self._quota) for texts, owner in requests]

    def get(self, identity: str) -> Text:
        """The text whose id is this, or alone begins like this. Raises NotFound."""
        with self._database.read() as session:
            return found(session, Text, identity, abbreviated=True)

    def page(self, *, after: str | None, limit: int, source: str | None = None) -> list[Text]:
        """Up to `limit` texts, of one source if it is given, newest first, after the text `after`. Raises NotFound for
        an unknown `after`.
        """
        where = () if source is None else (col(Text.source) == source,)
        with self._database.read() as session:
            return page(session, Text, *where, after=after, limit=limit)

    def sources(self) -> list[SourceCount]:
        """How much there is from each source, the newest first."""
        new = func.sum(Text.words).filter(col(Text.learned_in).is_(None), LEARNED_BY_JOBS)
        of_each = select(Text.source, func.count(col(Text.id)), func.sum(Text.words), func.coalesce(new, 0))
        with self._database.read() as session:
            rows = session.exec(of_each.group_by(Text.source).order_by(func.max(Text.created_at).desc())).all()
        return [SourceCount(*row) for row in rows]

    def counts(self, *, beside: str = "", until: datetime | None = None) -> TextCounts:
        """The number of texts, and of new words in those that this job does not have, and came until then."""
        with self._database.read() as session:
            last = undecided(session, in_use(col(Job.model)))
            tried = select(JobText.text_id).where(col(JobText.job_id).in_((beside, last.job_id if last else "")))
            new = select(func.coalesce(func.sum(Text.words), 0)).where(
                col(Text.learned_in).is_(None), LEARNED_BY_JOBS, col(Text.id).not_in(tried)
            )
            if until is not None:  # reads the new texts' rows
                new = new.where(col(Text.created_at) <= until)
            texts, words = session.exec(select(func.count(col(Text.id)))).one(), session.exec(new).one()
        return TextCounts(texts=texts, new_words=words)

    def use_model(self, model: str) -> None:
        """Count as new what no job of this model has learned; what other models have is known when they are back."""
        with self._database.write() as session:
            if (used := session.get(Preference, MODEL)) is None or used.value != model:
                session.merge(Preference(key=MODEL, value=model))
                session.exec(update(Text).values(learned_in=learner(col(Text.id), model)))

    def labelled(self, labels: Collection[str] | None) -> dict[str, list[str]]:
        """The texts of these labels, or of all, the newest first."""
        newest = select(Text.label, Text.text).order_by(col(Text.created_at).desc(), col(Text.id))
        which = col(Text.label).is_not(None) if labels is None else col(Text.label).in_(labels)
        found: dict[str, list[str]] = {}
        with self._database.read() as session:
            for label, text in session.exec(newest.where(which)):
                found.setdefault(str(label), []).append(text)
        return found

    def of_job(self, job_id: str) -> list[Text]:
        """A job's texts, oldest first, in a stable order; `learned_in` and `held_out` are those of JobText."""
        of_job = select(Text, JobText).join(JobText).where(JobText.job_id == job_id)
        with self._database.read() as session:
            found = session.exec(of_job.order_by(col(Text.created_at), col(Text.id))).all()
        for text, role in found:
            set_committed_value(text, "learned_in", role.learned_in)
            set_committed_value(text, "held_out", role.held_out)
        return [text for text, _ in found]


def add_texts(
    session: Session, texts: Sequence[NewText], owners: Sequence[str], now: datetime, quota: Quota | None = None
) -> Added:
    """Store the texts that do not exist yet, and whose they are. owners: of each text; a quota is for a single one."""
    sizes = [len((new.text + (new.completion or "")).encode()) + ROW_BYTES for new in texts]
    if quota and owners:
        quota.check(session, owners[0], now, texts=len(texts), nbytes=sum(sizes))
    ids = tuple(map(text_id, texts))
    last = session.exec(select(func.max(Text.number))).one() or 0
    distinct = dict(zip(ids, texts, strict=True))
    rows = [_row(last + place, identity, new, now) for place, (identity, new) in enumerate(distinct.items(), 1)]
    # As rows, not as objects: a folder brings 100,000 of them.
    missing = insert(Text).on_conflict_do_nothing(index_elements=["id"]).returning(col(Text.id))
    added = set(session.connection().execute(missing, rows).scalars()) if rows else set()
    if added:
        passages.index(
            session.connection(),
            ((row["number"], row["text"], row["completion"]) for row in rows if row["id"] in added),
        )
    if ids:
        pairs = dict(zip(zip(ids, owners, strict=True), sizes, strict=True))
        owned = [{"text_id": one, "owner": by, "sent_at": now, "bytes": size} for (one, by), size in pairs.items()]
        session.connection().execute(insert(TextOwner).on_conflict_do_nothing(), owned)
    return Added(ids=ids, created=len(added))


def give_to_job(
    session: Session, job: Job, texts: Sequence[NewText], now: datetime, quota: Quota | None
) -> tuple[int, int]:
    """Store texts as the owner's of a job, and assign them to it. Returns the number of texts and of words."""
    job_id, ids = job.id, dict.fromkeys(add_texts(session, texts, [job.owner] * len(texts), now, quota).ids)
    session.add_all(JobText(job_id=job_id, text_id=identity) for identity in ids)
    session.flush()
    return len(ids), new_words(session, job_id)


def assign_to_job(
    session: Session, job: Job, *, given: bool, replay: bool, follows: str | None = None
) -> tuple[int, int]:
    """Fix the job's texts and roles: all new ones, and as many words of old text, replayed against forgetting.

    The choice of old texts depends on the job's id; a tenth of them is held out, if there is as much, to detect
    forgetting. Texts that only withdrawn jobs have learned are excluded. Without new text it is all old text. given:
    the job has its own texts, which count as new. replay: False excludes old text. follows: a job whose new texts are
    new to this one, too. Returns the number of texts and of words.

    An adapter that was trained elsewhere is judged on what is held out on every device, 5,000 words at most, and beside
    as many of the others; a candidate on all new text that no adapter was trained on.
    """
    job_id = job.id
    columns = select(Text.id, Text.words, Text.learned_in, Text.held_out).where(LEARNED_BY_JOBS)
    texts = [_Weighed(*row) for row in session.exec(columns).all()]
    of_chain = _ids_of(follows or "").where(col(JobText.learned_in).is_(None))
    own = set(session.exec(_ids_of(job_id) if given else of_chain))
    new = [text for text in texts if text.id in own or (not given and text.learned_in is None)]
    # A job whose own texts were deleted has nothing to learn.
    old = _old(session, texts, own, job_id) if replay and (new or not given) else []
    of_model = col(Job.model) == select(Job.model).where(Job.id == job_id).scalar_subquery()
    of_adapters = select(JobText.text_id).join(Job).where(col(Job.adapter).is_not(None), of_model, OWN)
    trained = set(session.exec(of_adapters.where(~col(JobText.held_out))))
    held_out = ({text.id for text in texts if text.held_out} | set(session.exec(of_adapters))) - trained
    if job.start_from == ADDED:
        by_role = ([text for text in sorted(texts) if text.held_out is role] for role in (True, False))
        new = [text for some in by_role for text in _first(some, MIN_REPLAY_WORDS)]
    if new:
        words = max(MIN_REPLAY_WORDS, sum(text.words for text in new))
        kept = _first([text for text in old if text.id in held_out], words // HELD_OUT_ONE_IN)
        rest = [text for text in old if text not in kept and (text.id in trained or not text.held_out)]
        old = kept + _first(rest, words - sum(text.words for text in kept))
        unseen = {text.id for text in new} - trained
        held_out = unseen if job.looks_again else to_hold_out(new, trained, more=not given)
        held_out |= {text.id for text in kept}
    session.exec(delete(JobText).where(col(JobText.job_id) == job_id))
    roles = [(text, None) for text in new] + [(text, text.learned_in) for text in old]
    session.add_all(
        JobText(job_id=job_id, text_id=text.id, learned_in=learned_in, held_out=text.id in held_out)
        for text, learned_in in roles
    )
    return len(new + old), sum(text.words for text in new + old)


def new_words(session: Session, job_id: str) -> int:
    """The words of a job's new texts."""
    of_job = select(func.sum(Text.words)).join(JobText, col(JobText.text_id) == col(Text.id))
    return session.exec(of_job.where(JobText.job_id == job_id, col(JobText.learned_in).is_(None))).one() or 0


class _Weighed(NamedTuple):
    id: str
    words: int
    learned_in: str | None
    held_out: bool


def to_hold_out(
    new: Sequence[_Weighed], trained: Collection[str], *, more: bool = True, share: float = MAX_HELD_OUT_SHARE
) -> set[str]:
    """The new texts to measure with: those that always are, and of little text `more`, by their ids.

    share: of the words, at most, by `more`. trained: the texts that a job has trained on, which prove nothing.
    """
    kept = {text.id: text.words for text in new if text.held_out and text.id not in trained}
    most = share * sum(text.words for text in new)
    for text in sorted(new) if more else ():  # by their ids, which are hashes
        if len(kept) < MIN_HELD_OUT and sum(kept.values()) + text.words <= most and text.id not in trained:
            kept[text.id] = text.words
    # Where nothing would be left to train on, all text is, but for its last blocks (data_split.py).
    return set(kept) if len(kept) < len(new) else set()


def _old(session: Session, texts: Sequence[_Weighed], own: Collection[str], job_id: str) -> list[_Weighed]:
    """Learned texts, except set-aside ones and the job's own, in an order that depends on the job's id."""
    set_aside = withdrawn_jobs(session) | {None}
    old = [text for text in texts if text.learned_in not in set_aside and text.id not in own]
    return sorted(old, key=lambda text: hashlib.sha256(f"{job_id} {text.id}".encode()).digest())


def _first(texts: Sequence[_Weighed], words: int) -> list[_Weighed]:
    """The first texts with this number of words together."""
    found: list[_Weighed] = []
    for text in texts:
        if words > 0:
            found.append(text)
            words -= text.words
    return found


def remember_files(session: Session, which: ColumnElement[bool]) -> list[str]:
    """Note which watched files have these texts, so that no scan brings them back. Returns the paths."""
    had = select(TextOwner.owner, TextOwner.text_id).join(WatchedFile, col(WatchedFile.path) == FILE_PATH)
    rows = session.exec(had.where(col(TextOwner.text_id).in_(select(Text.id).where(which)))).all()
    if rows:
        deleted = [{"owner": owner, "text_id": identity} for owner, identity in rows]
        session.connection().execute(insert(DeletedText).on_conflict_do_nothing(), deleted)
    return sorted({owner.removeprefix(FILE) for owner, _ in rows})


def alone(owner: str) -> SelectOfScalar[str]:
    """The texts that this owner has alone."""
    by_text = select(TextOwner.text_id).group_by(col(TextOwner.text_id))
    return by_text.having(func.count() == 1, func.min(TextOwner.owner) == owner)


#: A text with a label is an example for /classify, which needs no job.
LEARNED_BY_JOBS = col(Text.label).is_(None)
#: A job that learns, and does not only judge.
OWN = func.coalesce(col(Job.start_from), "").not_in((ADDED, CANDIDATE))
#: The path of the watched file that an owner is. No app's name gives the path of one.
FILE_PATH = func.substr(col(TextOwner.owner), len(FILE) + 1)
#: Texts of which every owner has let go.
UNOWNED = col(Text.id).not_in(select(TextOwner.text_id))


def mark_learned(session: Session, job_id: str) -> None:
    """Mark a succeeded job's texts as learned."""
    new = select(Text.id).where(col(Text.id).in_(_ids_of(job_id)), col(Text.learned_in).is_(None))
    here = update(JobText).where(col(JobText.job_id) == job_id, col(JobText.text_id).in_(new))
    session.exec(here.values(learned_here=True))
    session.exec(update(Text).where(col(Text.id).in_(new)).values(learned_in=job_id))


def learner(text_id: SQLColumnExpression[str], model: str) -> ScalarSelect[str]:
    """The job of a model that has learned a text; NULL while it is new to the model."""
    of = aliased(JobText)
    learned = select(of.job_id).join(Job, col(Job.id) == col(of.job_id)).where(col(of.text_id) == text_id)
    return learned.where(col(of.learned_here), Job.model == model).scalar_subquery()


def _ids_of(job_id: str) -> SelectOfScalar[str]:
    """A job's texts."""
    return select(JobText.text_id).where(JobText.job_id == job_id)


def _row(number: int, identity: str, new: NewText, now: datetime) -> dict[str, Any]:
    return {
        "id": identity,
        "number": number,
        "source": new.source,
        "text": new.text,
        "completion": new.completion,
        "label": new.label,
        "messages": new.messages,
        "words": count_words(new.text) + count_words(new.completion or ""),
        "held_out": is_held_out(new) if new.held_out is None else new.held_out,
        "created_at": now,
    }
