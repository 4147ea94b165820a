"""Mail: what its writer wrote in it, and nothing of what is quoted, signed or attached."""

import subprocess
import sys
from pathlib import Path

import pytest

from pocketllm.readers.base import Example, Kind, Skipped
from tests.support.reading import items, look, reasons, write, writers

MBOX = b"""From anna@example.org Mon Jan  1 10:00:00 2024
From: Anna Alder <anna@example.org>
To: bert@example.org
Subject: The boat
Message-ID: <1@example.org>

The boat is dry.
>From here on it stays so.

From bert@example.org Mon Jan  1 11:00:00 2024
From: bert@example.org
In-Reply-To: <1@example.org>

Good.

From anna@example.org Mon Jan  1 12:00:00 2024
From: =?utf-8?q?Anna_=C3=84lder?= <ANNA@example.org>
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Gr=FC=DFe,

On Mon, 1 Jan 2024 at 11:00, Bert Birch wrote:
> Good.
>
> Bert
--\x20
Anna Alder
"""


def test_a_mailbox_of_several_writers_asks_who_its_owner_is(tmp_path: Path) -> None:
    assert writers(write(tmp_path / "All mail", MBOX)) == {"anna@example.org": 2, "bert@example.org": 1}
    broken = b"From x\nFrom: =?nonsense?q?=?= <\n\nWords.\n\n"
    assert len(items(write(tmp_path / "Sent", broken + MBOX[: MBOX.index(b"From bert")]))) == 2  # of one address


def test_only_the_owners_mails(tmp_path: Path) -> None:
    path = write(tmp_path / "Sent", MBOX.replace(b"\n", b"\r\n"))
    for me in ("anna@example.org", "ANNA@EXAMPLE.ORG"):
        assert look(path)[0] is Kind.MBOX
        assert [one.item["text"] if isinstance(one, Example) else one for one in look(path, me)[1]] == [
            "The boat is dry.\nFrom here on it stays so.",
            Skipped(reason="mails from other people", place="mail 2"),
            "Grüße,",
        ]


def part(content: str, kind: str = "text/plain", *headers: str) -> str:
    return "\n".join([f"Content-Type: {kind}", *headers, "", content])


def several(kind: str, *parts: str) -> str:
    mark = f"b{len(parts)}"
    between = "".join(f"--{mark}\n{one}\n" for one in parts)
    return part(f"{between}--{mark}--", f"multipart/{kind}; boundary={mark}")


def mixed(*parts: str) -> str:
    return several("mixed", *parts)


ATTACHED, INLINE = "Content-Disposition: attachment", "Content-Disposition: inline"
PICTURE = part("AAAA", "image/png", f"{INLINE}; filename=a.png", "Content-Transfer-Encoding: base64")
ONE, PAGE = part("One."), part("<p>Yes.</p>", "text/html")
FLOWED = "text/plain; format=flowed"
#: By what a mail is: its parts, and what its sender wrote.
PARTS = {
    "text around a picture": (mixed(ONE, PICTURE, part("Two.")), "One.\n\nTwo."),
    "pages around a picture": (mixed(PAGE, PICTURE, PAGE), "Yes.\n\nYes."),
    "a named file is attached": (mixed(ONE, part("no", "text/plain", f"{ATTACHED}; filename=a.txt")), "One."),
    "a file is attached": (mixed(ONE, part("no", "text/plain", ATTACHED)), "One."),
    "a file is shown": (mixed(ONE, part("no", "text/plain", f"{INLINE}; filename=a.patch")), "One."),
    "a mail is attached": (mixed(ONE, part(part("no"), "message/rfc822")), "One."),
    "the same as text and as a page": (
        mixed(several("alternative", part("Yes."), PAGE, part("{}", "text/calendar"))),
        "Yes.",
    ),
    "a page with its pictures": (several("alternative", several("related", PAGE, PICTURE)), "Yes."),
    "signed": (several("signed", ONE, part("AAAA", "application/pgp-signature")), "One."),
    "encrypted": (
        several("encrypted", part("Version: 1", "application/pgp-encrypted"), part("A", "application/octet-stream")),
        None,
    ),
    "soft line ends": (part("One \ntwo.\n From three \n> no \n> no\n-- \nme", FLOWED), "One two.\nFrom three"),
    "soft line ends in a signed text": (
        part(
            "-----BEGIN PGP SIGNED MESSAGE-----\n\nOne \ntwo.\n- -- \nme\n-----BEGIN PGP SIGNATURE-----\n\niQ\n", FLOWED
        ),
        "One two.",
    ),
    "a page alone": (
        part(
            "<style>p {}</style><div>One &amp; two.</div><div><br></div><div>Three.</div>"
            "<div>On Mon, 1 Jan 2024 at 11:00, Bert &lt;bert@example.org&gt; wrote:<br></div>"
            "<blockquote class=q>Not mine <blockquote>nor this</blockquote>.</blockquote>",
            "text/html",
        ),
        "One & two.\n\nThree.",
    ),
    "a page with the answer below": (
        part(
            "<div>On 1 Jan 2024 at 11:00, Bert &lt;b@c.de&gt; wrote:<br></div><blockquote><p>No?</p>"
            "<blockquote>Or?</blockquote></blockquote><p>Yes.</p>",
            "text/html",
        ),
        "Yes.",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(name: str, tmp_path: Path) -> None:
    text, own = PARTS[name]
    path = write(tmp_path / "m.eml", f"From: a@b.c\nDate: x\nMIME-Version: 1.0\n{text}")
    if own is None:
        assert reasons(path) == ["mails without text of their own"]
    else:
        assert items(path) == [{"text": own}]


def test_a_mail_is_known_without_its_suffix_but_a_note_stays_one(tmp_path: Path) -> None:
    text = b"From: a@b.c\nDate: today\n\nWords."
    assert look(write(tmp_path / "1700000000.M1P2.host:2,S", text))[0] is Kind.EML
    assert look(write(tmp_path / "a.md", text))[0] is Kind.NOTES


def test_mails_without_words(tmp_path: Path) -> None:
    rows = {
        b"From x\nFrom: a\n\n> quoted\n": "mails without text of their own",
        b"From x\nFrom: a\nContent-Type: image/png\n\nAAAA\n": "mails without text of their own",
        b"From x\nTo: " + b"a@b.c, " * 50_000 + b"\n\nwords\n": "broken mails",
        b"From x\nFrom: a\nContent-Type: " + b"<p" * 60_000 + b"\n\nwords\n": "broken mails",
        b"From x\nFrom: a\nContent-Type: text/plain; charset=\xff\xfe\n\n\n": "mails without text of their own",
    }
    for data, reason in rows.items():
        assert reasons(write(tmp_path / "m", data), format=Kind.MBOX) == [reason], data[:80]


WORDS = "Grüße … “ja”: 5 €"


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        ("utf-8", WORDS.encode("cp1252"), WORDS),
        ("us-ascii", WORDS.encode("cp1252"), WORDS),
        ("martian", WORDS.encode("cp1252"), WORDS),
        ("martian", WORDS.encode() + b"\0", WORDS),
        ("utf-8", WORDS.encode() + b" \x80", f"{WORDS} €"),
        ("utf-8", WORDS.encode("cp1252")[:-1] + b"\x81", f"{WORDS[:-1]}\ufffd"),
    ],
)
def test_a_wrong_charset(charset: str, data: bytes, text: str, tmp_path: Path) -> None:
    head = f"From: a@b.c\nDate: x\nContent-Type: text/plain; charset={charset}\n\n".encode()
    assert items(write(tmp_path / "m.eml", head + data)) == [{"text": text}]


def test_parts_nested_without_end(tmp_path: Path) -> None:
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3000))
    found = look(write(tmp_path / "m.eml", b"From: a@b.c\n" + nested + b"\nwords\n"))[1]
    assert len(found) == 1


@pytest.mark.slow
def test_a_large_mailbox_is_not_held_in_memory(tmp_path: Path) -> None:
    """100 MB of mails with attachments are read by a process that may have half of that."""
    attachment = b"QUJD" * 19 + b"\n"
    one = (
        b"From x\nFrom: a@b.c\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\n"
        b"Words.\n--b\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n"
        + attachment * 27_000
        + b"--b--\n\n"
    )
    path = tmp_path / "large.mbox"
    with path.open("wb") as file:
        for _ in range(50):
            file.write(one)
    code = (
        "import resource, sys; from pathlib import Path; from pocketllm.readers.base import ReadOptions;"
        "from pocketllm.readers.mail import read_mbox;"
        "resource.setrlimit(resource.RLIMIT_DATA, (50_000_000, 50_000_000));"
        "print(sum(1 for _ in read_mbox(Path(sys.argv[1]), ReadOptions())))"
    )
    limited = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert limited.stdout == "50\n", limited.stderr
