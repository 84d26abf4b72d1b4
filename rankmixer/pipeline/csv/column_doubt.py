"""What a person should know of how a column of a CSV was read: what it may be meant as, and what to do about it."""

import re

from rankmixer.pipeline.csv.column_fit import Fit, shorten
from rankmixer.pipeline.csv.column_profile import ColumnProfile
from rankmixer.pipeline.propose.column_facts import TIME_NAME

_DECIMAL_COMMA = re.compile(r"[+-]?[0-9.]*(,[0-9]+)?")
_OTHER_DATE = re.compile(r"[0-9]{1,2}[./-]([0-9]{1,2}|[A-Za-z]{3})[./-][0-9]{2,4}\b")
_COMPACT_DATE = re.compile(r"(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")


def doubt(profile: ColumnProfile) -> str | None:
    """What a column of text may be meant as, that is not understood."""
    if profile.kind != "text" or not profile.values:
        return None
    number, integer = profile.fits["number"], profile.fits["integer"]
    if (number.fits or integer.fits) and (reason := profile.no_numbers()) is not None:
        return reason
    values = profile.values
    if all(map(_DECIMAL_COMMA.fullmatch, values)) and any("," in value for value in values):
        return "numbers with a decimal comma? Say --decimal ,"
    if all(map(_OTHER_DATE.match, values)):
        return "dates? Say how they are written, as in --time-format %d/%m/%Y"
    if all(value.startswith("[") for value in values):
        return "lists that are nested, hold empty elements, or were cut short with ...; write the elements as a|b|c"
    if all(value.startswith('{"') for value in values):
        return "JSON objects; make a column of each key"
    return _nearly(profile, integer, number)


def _nearly(profile: ColumnProfile, integer: Fit, number: Fit) -> str | None:
    likely = {
        "integers": integer,
        "numbers": number,
        "times": max(profile.fits["local"], profile.fits["zoned"], key=lambda fit: fit.known),
        "lists in brackets": profile.fits["list"],
    }
    found = max(likely, key=lambda name: likely[name].known)
    if not likely[found].nearly or (found == "lists in brackets" and not profile.has_long_lists):
        return None
    return f"{found} but for {likely[found].in_the_way()}; if that is wrong, mend these or give them to --missing"


def remark(profile: ColumnProfile) -> str | None:
    """A whole sentence on what was understood, but may be meant otherwise."""
    name = profile.name
    if (question := doubt(profile)) is not None:
        return f"kept as text {name}: {question}"
    if profile.kind == "text" and profile.null_words and len(profile.values) > 1:
        words = ", ".join(f"{shorten(word)} in {count:,}" for word, count in profile.null_words.most_common(3))
        return f"kept as values of {name}: {words}; say --missing WORD if it means none"
    if profile.kind in ("integer", "number") and profile.sign[0]:
        return f"{name}: numbers without their sign, such as {shorten(profile.sign[1])}"
    if profile.kind == "integer" and profile.values and all(map(_COMPACT_DATE.fullmatch, profile.values)):
        return f"kept as integers {name}: dates? Say --time-format %Y%m%d"
    if profile.kind == "number" and TIME_NAME.search(name) and 1e9 <= profile.least <= profile.most < 4e9:
        return f"kept as numbers {name}: seconds since 1970? Write them without a fraction"
    return None
