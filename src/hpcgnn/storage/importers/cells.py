"""Cells of text tables: their delimiter, and conversion of texts to times and lists."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from hpcgnn.storage.importers.text import PADDED, TextBlock, is_number

INTEGER, NUMBER, TEXT, TIME, LIST = "integer", "number", "text", "time", "list"
BOOLEAN = "boolean"
TOO_LARGE = "does not fit a signed 64-bit integer: --string-ids reads it as text"
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")  # in columns of numbers
_SPREADSHEET = ("#N/A", "#DIV/0!", "#REF!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!")
NANOSECONDS = pa.timestamp("ns")
_GAPS = r"\s*[,;]\s*|\s+"  # between the numbers of a list
_ZONE = r":\d\d(\.\d+)?\s?(Z|[+-]\d\d(:?\d\d)?)$"
_COMMAS = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d{1,3}(\.\d{3})+,\d+|\d*,\d+)")
_LOOKED_AT = 100
_QUANTITY = re.compile(r"\(?[$€£]?\s?[+-]?\d[\d.,'\u2019\s]*[%$€£]?\)?-?")
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T]\d{1,2}:\d\d.*)?")
_DAY = re.compile(r"(\d{4}([./-])\d\d?\2\d\d?|\d\d?([./-])\d\d?\3\d{4})([ T].*)?")
_DELIMITERS = ",\t;|"


def times(array: pa.Array) -> pa.Array:
    """Return texts such as 2021-05-31, 2021-05-31 10:00, 2021-05-31T10:00:00+02:00 as UTC times.

    Raises:
        ArrowInvalid: a text is not such a time.
    """
    array = pc.if_else(pc.is_in(array, value_set=pa.array(MISSING)), None, array)
    zoned = pc.match_substring_regex(array, _ZONE)
    with_zone = pc.if_else(zoned, array, None).cast(pa.timestamp("ns", "UTC"))
    without = pc.if_else(zoned, None, array).cast(NANOSECONDS)
    return pc.coalesce(with_zone.cast(pa.int64()).cast(NANOSECONDS), without)


def is_quantity(text: str) -> bool:
    """Return whether a text is a formatted number (5%, 1 000 or (3)) or a date (31/05/2021)."""
    written = _QUANTITY.fullmatch(text) or _DATE.fullmatch(text)
    return bool(written) and not is_number(text)


def is_date(text: str) -> bool:
    """Return whether a text is a date, or a date and time: 2021-05-31T12:00 or 31/05/2021."""
    return bool(_DAY.fullmatch(text))


def means_missing(text: str) -> bool:
    """Return whether a text stands for a missing value, or for an error in a spreadsheet."""
    return text in MISSING or text == "?" or text in _SPREADSHEET


def variants(texts: list[str]) -> list[str]:
    """Return two texts that differ only in spaces, case or Unicode form, or [] if there are none.

    Texts of one character are taken for codes, in which case may be significant.
    """
    seen: dict[str, str] = {}
    for text in texts:
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if key in seen and len(key) > 1:
            return [seen[key], text]
        seen[key] = text
    return []


def strangers(texts: list[str]) -> list[str]:
    """Return the texts that are no numbers, or no lists of numbers, if most of the others are."""
    for is_usual in (is_number, is_list):
        found = [text for text in texts if not is_usual(text) and not means_missing(text)]
        if 2 * len(found) < len(texts):
            return found
    return []


def are_lists(array: pa.Array) -> bool:
    """Return whether the first texts are lists of numbers: in brackets, or with commas."""
    texts = [text.strip() for text in array.slice(0, _LOOKED_AT).drop_null().to_pylist()]
    for text in texts:
        bare = text.strip("[]()")
        if bare == text and "," not in text and ";" not in text:
            return False
        parts = re.split(_GAPS, bare.strip())
        if len(parts) < 2 or not all(is_number(part) for part in parts):
            return False
    return bool(texts)


def lists(array: pa.Array) -> pa.Array:
    """Parse texts such as `0.5, 1` and `[0.5 1]` into lists of numbers."""
    bare = pc.replace_substring_regex(array, pattern=r"^[\[(\s]+|[\])\s]+$", replacement="")
    return pc.split_pattern_regex(bare, pattern=_GAPS).cast(pa.large_list(pa.float64()))


def is_list(text: str) -> bool:
    """Return whether a text is several numbers, perhaps in brackets."""
    return all(is_number(part) for part in re.split(_GAPS, text.strip("[]() ")))


def has_comma(text: str) -> bool:
    """Return whether a text may be a number with commas, such as 0,5 or 1,000."""
    return _COMMAS.fullmatch(text.strip()) is not None


def have_commas(array: pa.Array) -> bool:
    """Return whether all of the first texts are numbers and some of them contain a comma."""
    texts = array.slice(0, _LOOKED_AT).drop_null().to_pylist()
    found = [has_comma(text) for text in texts if text not in MISSING]
    plain = (is_number(text.strip()) for text in texts if text not in MISSING)
    return any(found) and all(a or b for a, b in zip(found, plain, strict=True))


def trimmed(array: pa.Array) -> pa.Array:
    """Return the texts without leading and trailing spaces.

    Raises:
        ArrowInvalid: a quote follows a space, so that the quoted text may have been split wrongly.
    """
    out = pc.ascii_trim_whitespace(array)
    if pc.any(pc.starts_with(out, '"')).as_py():
        raise pa.ArrowInvalid("a quote follows a space: remove the space after the delimiter")
    return out


def without(array: pa.Array, missing: tuple[str, ...]) -> pa.Array:
    """Return the numbers, with those that mean a missing value replaced by null."""
    for text in missing:
        if is_number(text):
            array = pc.if_else(
                pc.equal(array.cast(pa.float64(), safe=False), float(text)), None, array
            )
    return array


def known(array: pa.Array, missing: tuple[str, ...]) -> pa.Array:
    """Return the texts, with empty ones and those that mean a missing value replaced by null."""
    absent = pc.equal(pc.binary_length(array), 0)
    if missing:
        absent = pc.or_(absent, pc.is_in(array, value_set=pa.array(missing, array.type)))
    return pc.if_else(absent, None, array)


def delimiter_of(line: bytes) -> str:
    """Return the line's most frequent delimiter outside quotes, a space if there is no other."""
    bare = re.sub(rb'"[^"]*"', b"", line)
    counts = {mark: bare.count(mark.encode()) for mark in _DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else (" " if b" " in bare.strip() else ",")


def with_single_spaces(text: bytes) -> bytes:
    """Return the text with single spaces between words and none at the ends of lines."""
    wide = any(gap in text for gap in (b"\t", b"  ", b" \n", b"\n "))
    if not wide and text[:1] != b" " and text[-1:] != b" ":
        return text  # the substitution below takes longer than all other processing of the text
    return re.sub(rb"(?m)^ +| +$", b"", re.sub(rb"[ \t]+", b" ", text))


def check_field(
    block: TextBlock, number: int, name: str, kind: str, value: str, decimal: str | None
) -> None:
    """Raise InputError naming the line unless the field is of this kind or missing."""
    if value in MISSING or kind == TEXT:
        return
    if kind == LIST:
        if not is_list(value):
            raise block.error(number, f"{name}: is not a list of numbers", value.encode())
        return
    if kind == TIME:
        try:
            times(pa.array([value]))
        except pa.ArrowException:
            text = "is not a time such as 2021-05-31, 2021-05-31 10:00:00 or ...T10:00:00+02:00"
            raise block.error(number, f"{name}: {text}", value.encode()) from None
        return
    if not is_number(value if decimal is None else value.replace(decimal, ".")):
        text = "is not a number"
        if has_comma(value):
            text += " (--decimal-comma: 0,5 is a half, 1,000 is 1)"
        raise block.error(number, f"{name}: {text}", value.encode())
    if kind == INTEGER:
        if not re.fullmatch(r"[+-]?[0-9]+", value):
            raise block.error(number, f"{name}: is not an integer", value.encode())
        if not -(1 << 63) <= int(value[:30]) < 1 << 63:
            raise block.error(number, f"{name}: {TOO_LARGE}", value.encode())
        if PADDED.match(value.encode()):
            text = f"begins with 0: --string-ids (ids) or --categorical {name} (classes) keeps 007"
            raise block.error(number, f"{name}: {text} apart from 7", value.encode())
