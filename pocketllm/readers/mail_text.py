"""What the writer of a mail wrote: the text without the mail it answers, and without the signature."""

import re

WROTE = r"wrote|schrieb|geschrieben|a écrit|escribió|escreveu|ha scritto|schreef|skrev|kirjoitti|napisał\(a\)|написал"
# "On Monday Anna wrote:", in the languages above, or any line that names an address or a time and ends in a colon.
ATTRIBUTION = re.compile(rf"(?:\b(?:{WROTE})\b.*|<[^<>\s]+@[^<>\s]+>.*|\d{{1,2}}:\d\d.*):\s*\Z", re.IGNORECASE)
ATTRIBUTION_START = re.compile(r"(?:On|Am|Le|El|Il|Op|Em|Den|På|W dniu)\s.{0,200}\Z", re.IGNORECASE)
# "-----Original Message-----", "---------- Forwarded message ---------"
OLD_MAIL = re.compile(r"\s*-{3,}\s?\w[^-]{3,60}-{3,}\s*\Z")
BLANKS = 3  # so many empty lines may stand between an announcement and its quote
HEADER = re.compile(r"[*]?(?:From|Von|De|Da|Van|Från|Fra)[*]?:[*]?\s\S")
NEXT_HEADER = re.compile(r"[*]?(?:Sent|Date|To|Gesendet|Datum|An|Envoyé|À|Enviado|Para|Inviato|A|Verzonden|Aan)[*]?:")
DEVICE = re.compile(
    r"(?:Sent from (?:my|Mail for|Outlook|Yahoo)\b|Get Outlook for\b|Von meinem \S.{0,40} gesendet|Gesendet von\b"
    r"|Envoyé de(?:puis)? mon\b|Enviado desde mi\b|Enviado do meu\b|Inviato da\b|Verstuurd vanaf mijn\b).{0,60}\Z",
    re.IGNORECASE,
)


def own_words(text: str) -> str:
    """Return a mail's text without quoted lines, what announces them, a forwarded mail, and the signature."""
    kept: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(">"):
            drop_attribution(kept)
        elif line.rstrip() == "--" or OLD_MAIL.match(line) or is_header_block(lines, number):
            break
        elif not DEVICE.match(line):
            kept.append(line.rstrip())
    # Without a quote below it: the quote was HTML, or the mail's program left it out.
    drop_attribution(kept)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def is_header_block(lines: list[str], number: int) -> bool:
    """Tell whether a line begins the headers of a mail that is copied into this one."""
    below = lines[number + 1 : number + 3]
    return bool(HEADER.match(lines[number])) and any(NEXT_HEADER.match(line) for line in below)


def drop_attribution(kept: list[str]) -> None:
    """Take the line that says who wrote what follows off the end; it may have been wrapped."""
    end = len(kept)
    while end and end > len(kept) - BLANKS and not kept[end - 1]:
        end -= 1
    if not end or not ATTRIBUTION.search(kept[end - 1][-300:]):
        return
    first = end - 1
    if not ATTRIBUTION_START.match(kept[first]) and first and ATTRIBUTION_START.match(kept[first - 1]):
        first -= 1
    del kept[first:]
