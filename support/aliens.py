"""Files of another kind in the place of text or weights, known by their first bytes."""

import json
import re


def alien(start):
    """What often stands in place of a file that was meant, by its first bytes, or None."""
    start = start.removeprefix(b"\xef\xbb\xbf").strip()
    what = "JSON" if _is_json(start.decode(errors="ignore")) else "CSV" if _is_csv(start.lower()) else None
    return what or next((what for pattern, what in _ALIENS.items() if re.match(pattern, start.lower())), None)


def _is_json(text):
    """Whether a list or an object with a text in it stands at the start, on lines of its own, or is cut off there."""
    if text[:1] not in ("[", "{") or '"' not in text:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return True
    except json.JSONDecodeError as error:
        return error.pos == len(text) or error.msg.startswith(("Unterminated string", "Invalid \\u"))
    return '"' in text[:end] and not text[end:].partition("\n")[0].strip(" \t\r,")


def _is_csv(start):
    """Whether the first line names columns, one of them as usual, and the second has as many fields or more."""
    header, _, rest = start.partition(b"\n")
    found = re.fullmatch(rb'["\w]*([,;])["\w]*(\1["\w]*)*\s*', header)
    if not found or not any(map(_COLUMN.fullmatch, re.findall(rb"\w+", header))):
        return False
    row = rest if rest.startswith(b'"') else rest.partition(b"\n")[0]  # a field in quotes may span lines
    return row.count(found[1]) >= header.count(found[1])


_COLUMN = re.compile(rb"(\w+_\w+|(pair|user|tweet)?id|idx|(text|sentence|question|label|review|sentiment)s?)\d*")
_ALIENS = {
    rb"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces",
    rb"<(!doctype|!--|\?xml)": "a web page",
    rb"<(html|head|body|div|p|table)(\s[^<>,]*)?>(\s*<|([^\n]*</\1>)?\s*(\n|\Z))": "a web page",
    rb"<([a-z][\w:.-]*)(\s[^<>\n]*)?>(\s*\n(?s:.*)</|<[a-z][^\n]*</\1>\Z)": "XML",
    rb"%pdf-": "PDF",
    rb"\{\\rtf": "RTF",
    rb"#! ?/\S+((?<=/env) \S+)?( -\S+)*\s*(\n|\Z)": "a program",
    rb"id\s+predicted_": "a file of predictions",
    rb'\d+[,;]"': "CSV",
}
