"""What a mail's sender wrote in it: rows of texts, by what stands in them beside it."""

import pytest

from pocketllm.readers.mail import own_words

BERT = "Bert Birch <bert@example.org>"
SIGNED = """-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

We need:
- - rope
{}
-----BEGIN PGP SIGNATURE-----

iQEzBAEBCAAdFiEE
=abcd
-----END PGP SIGNATURE-----
"""
ENCRYPTED = "-----BEGIN PGP MESSAGE-----\nVersion: 2\n\nhQEMA0\n=abcd\n-----END PGP MESSAGE-----"
RULE = "_" * 47

#: By what the mail is: its text, and what of it its sender wrote.
OWN = {
    # Quotes that are marked.
    "interleaved": ("Yes.\n\n> No?\n\nSee you.", "Yes.\n\nSee you."),
    "wrapped header, marked": (
        "Yes.\n\nOn 1 Jan 2024, at 11:00, A very long name of somebody\n<bert@example.org> wrote:\n\n> No?",
        "Yes.",
    ),
    "French, marked": ("Oui.\n\nLe lun. 1 janv. 2024 à 11:00, Bert <b@example.org> a écrit :\n> Non", "Oui."),
    "bottom-posted": (f"On Mon, 1 Jan 2024 at 11:00, {BERT} wrote:\n> No?\n> Or?\n\nYes.\n\nAnna", "Yes.\n\nAnna"),
    "bottom-posted, wrapped header": (f"On Monday, 1 January 2024 11:00:00 CET\n{BERT} wrote:\n> No?\nYes.", "Yes."),
    "answers between quotes": (
        f"Hello,\n\n{BERT} wrote:\n> Rope?\nYes.\n> Tea?\n\nNo, coffee.\n>> Milk?\n> Sugar?\n\nAnna",
        "Hello,\n\nYes.\n\nNo, coffee.\n\nAnna",
    ),
    "a name alone, marked": ("Yes.\n\nBert Birch wrote:\n> No?", "Yes."),
    "a marked quote in which an unmarked one stands": (
        f"On 2 Jan 2024 at 11:00, {BERT} wrote:\n> Or?\n\nYes.\n\nOn 1 Jan 2024 at 10:00, {BERT} wrote:\n\nNo.",
        "Yes.",
    ),
    # Text that is not marked, below the line that a program writes above it.
    "Gmail's": (f"Yes.\n\nOn Mon, Jan 1, 2024 at 11:00 AM {BERT} wrote:\n\nNo?\n\nOr?", "Yes."),
    "Thunderbird's": ("Yes.\n\nOn 1/1/24 11:00, Bert Birch wrote:\nNo?", "Yes."),
    "an unmarked quote of quotes": (
        f"Yes.\n\nOn 2 Jan 2024 at 11:00, {BERT} wrote:\n\nNo.\n\nOn 1 Jan 2024 10:00, Cid wrote:\n\nOr?\n> Why?\nSo.",
        "Yes.",
    ),
    "cut in the address": ("Yes.\n\nOn Mon, 1 Jan 2024 at 11:00, Bert <\nbert@example.org> wrote:\n\nNo?", "Yes."),
    "cut before its verb": (f"Yes.\nOn Mon, 1 Jan 2024 at 11:00, {BERT}\nwrote:\nNo?", "Yes."),
    "header over three lines": (
        "Yes.\n\nOn Monday, 1 January 2024, 11:00:00 CET\nBert Birch of the harbour\n<bert@example.org> wrote:\nNo?",
        "Yes.",
    ),
    "no date": (f"Yes.\n\n{BERT} wrote:\n\nNo?", "Yes."),
    "address first, as in German": (f"Ja.\n\n{BERT} schrieb am Mo., 1. Jan. 2024, 11:00:\n\nNein?", "Ja."),
    "German": ("Ja.\n\nAm 01.01.2024 um 11:00 schrieb Bert Birch:\n\nNein?", "Ja."),
    "French": (f"Oui.\n\nLe lun. 1 janv. 2024 à 11:00, {BERT} a écrit\u00a0:\n\nNon?", "Oui."),
    "Dutch": (f"Ja.\n\nOp ma 1 jan 2024 om 11:00 schreef {BERT}:\n\nNee?", "Ja."),
    "Spanish": (f"Sí.\n\nEl lun, 1 ene 2024 a las 11:00, {BERT} escribió:\n\n¿No?", "Sí."),
    "Italian": (f"Sì.\n\nIl giorno lun 1 gen 2024 alle ore 11:00 {BERT} ha scritto:\n\nNo?", "Sì."),
    "Portuguese": (f"Sim.\n\nEm seg., 1 de jan. de 2024 às 11:00, {BERT} escreveu:\n\nNão?", "Sim."),
    "Danish": (f"Ja.\n\nDen man. 1. jan. 2024 kl. 11.00 skrev {BERT}:\n\nNej?", "Ja."),
    "Finnish": ("Joo.\n\nma 1. tammik. 2024 klo 11.00 Bert (bert@example.org) kirjoitti:\n\nEi?", "Joo."),
    "Polish": (f"Tak.\n\nW dniu pon., 1 sty 2024 o 11:00 {BERT} napisał(a):\n\nNie?", "Tak."),
    "no verb": (f"Yes.\n\n2024-01-01 11:00 GMT+01:00 {BERT}:\n\nNo?", "Yes."),
    # Headers that are copied into the mail.
    "headers": ("Yes.\n\nFrom: Bert <b@example.org>\nSent: Monday\nTo: Anna\n\nNo?", "Yes."),
    "German headers": ("Ja.\n\nVon: Bert\nGesendet: Montag\nAn: Anna\n\nNein?", "Ja."),
    "bold headers": ("Yes.\n\n*From:* Bert\n*Sent:* Monday\n*To:* Anna\n*Subject:* Boat\n\nNo?", "Yes."),
    "headers below a rule": (
        f"Yes.\n\n{RULE[:32]}\nFrom: {BERT}\nSent: Monday, January 1, 2024 11:00 AM\nTo: Anna\nSubject: Boat\n\nNo?",
        "Yes.",
    ),
    "French headers": ("Oui.\n\nDe : Bert\nEnvoyé : lundi 1 janvier 2024\nÀ : Anna\nObjet : Bateau\n\nNon?", "Oui."),
    "Dutch headers": ("Ja.\n\nVan: Bert\nVerzonden: maandag\nAan: Anna\nOnderwerp: Boot\n\nNee?", "Ja."),
    "Spanish headers": ("Sí.\n\nDe: Bert\nEnviado: lunes\nPara: Anna\nAsunto: Barco\n\n¿No?", "Sí."),
    "GMX's headers": ("Ja.\n\nGesendet: Montag, 01. Januar 2024\nVon: Bert\nAn: Anna\nBetreff: Boot\n\nNein?", "Ja."),
    "no headers": ("From: here to there.\nNo mail.", "From: here to there.\nNo mail."),
    # Lines between dashes.
    "original message": ("Yes.\n\n-----Original Message-----\nFrom: Bert\nNo?", "Yes."),
    "forwarded message": ("Look.\n\n---------- Forwarded message ---------\nFrom: Bert", "Look."),
    "original message, hyphened": ("Ja.\n\n-------- Original-Nachricht --------\nNein?", "Ja."),
    "original message, French": ("Oui.\n\n-----Message d'origine-----\nNon?", "Oui."),
    "original message, Dutch": ("Ja.\n\n-----Oorspronkelijk bericht-----\nNee?", "Ja."),
    "original message, Spanish": ("Sí.\n\n-----Mensaje original-----\n¿No?", "Sí."),
    "forwarded message, Apple's": ("Look.\n\nBegin forwarded message:\n\nFrom: Bert\nSubject: Boat\n\nNo?", "Look."),
    "forwarded message, of Notes": ("Look.\n\n----- Forwarded by Bert/Boats on 01/01/2024 -----\n\nNo?", "Look."),
    "a header between dashes": (f"Yes.\n\n---- On Mon, 01 Jan 2024 11:00:00 -0800 {BERT} wrote ----\n\nNo?", "Yes."),
    "a heading between dashes with On": ("--- On Monday ---\nRope", None),
    "a message between dashes": ("--- Message for Monday ---\nRope", None),
    "a heading between dashes": ("--- Agenda for Monday ---\nRope\n\n--- Who comes ---\nBert", None),
    # PGP.
    "signed": (SIGNED.format("- - tea"), "We need:\n- rope\n- tea"),
    "signed, with a signature": (SIGNED.format("- -- \nAnna"), "We need:\n- rope"),
    "signed, and a list's footer": (
        SIGNED.format("") + f"\n{RULE}\nBoats mailing list\nboats@example.org",
        "We need:\n- rope",
    ),
    "encrypted, between words": (f"For you:\n\n{ENCRYPTED}\n\nAnna", "For you:\n\nAnna"),
    # What stands below the words.
    "a telephone": ("Yes.\n\nSent from my iPhone", "Yes."),
    "a signature": ("Yes.\n--\nAnna\nDirector of Boats", "Yes."),
    "a list's footer": (f"Yes.\n{RULE}\nBoats mailing list\nboats@example.org\nhttps://example.org/boats", "Yes."),
    # All of it is the sender's.
    "nothing else": ("Hello Bert,\n\nthe boat is dry.\n\nBest regards\nAnna", None),
    "a list": ("We need:\n- rope\n- tea", None),
    "he wrote": ("My father once wrote:\n\nBoats are patient.\n\nHe was right.", None),
    "wrote within a line": ("On 1 Jan 2024 at 11:00 he wrote: come home. So I did.", None),
    "wrote at the end of a sentence": ("On Monday I read what Bert wrote.\n\nIt is good.", None),
    "a time and a colon": ("We meet on Monday at 10:30:\n- Bert\n- Cid", None),
    "an address and a colon": ("Write to bert@example.org:\nhe knows.", None),
    "in a year": ("In 1998 my father wrote:\n\nBoats are patient.", None),
    "people and their addresses": (f"{BERT}:\nknows the boat.\n\nCid <cid@example.org>:\nknows the sea.", None),
    "minutes": ("Minutes, 1 January 2024, 11:00:\n\nAnna opened the meeting.", None),
    "German, he wrote": ("Er schrieb:\n\nKomm heim.", None),
}


@pytest.mark.parametrize("name", OWN)
def test_own_words(name: str) -> None:
    text, own = OWN[name]
    assert own_words(text) == (text if own is None else own)
