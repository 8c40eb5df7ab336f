"""In which form a client wants an answer: the format by Accept, the coding by Accept-Encoding (RFC 9110, 12.5).

    choose("text/plain;version=0.0.4;q=0.5, */*;q=0.1") -> TEXT
    compressed("gzip, deflate") -> True

Whatever the client sends, there is an answer, and nothing of what it sent is in it: an entry that is malformed, or that asks for
what we cannot produce, is as though it were not there.
"""

import collections
import functools
import re

FIELD_MAX = 1000        # characters of a field that is looked at; Prometheus sends 300
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
QUALITY = re.compile(r"0?\.[0-9]{1,9}|0\.?|1(?:\.0{0,9})?")     # some clients leave the 0 before the point out
QUOTED = r'"(?:[^"\\]|\\.)*"?|[^"%s]+|%s'   # a quoted string, what else holds no separator, the separator

Format = collections.namedtuple("Format", "name content_type kind limits")  # limits: (parameter, values that suit), "" for absent
Range = collections.namedtuple("Range", "kind parameters quality")

UTF8 = ("charset", ("", "utf-8"))
JSON = Format("json", "application/json", "application/json", ())
TEXT = Format("text", "text/plain; version=0.0.4; charset=utf-8", "text/plain", (("version", ("", "0.0.4")), UTF8))
OPENMETRICS = Format("openmetrics", "application/openmetrics-text; version=1.0.0; charset=utf-8", "application/openmetrics-text",
                     (("version", ("", "1.0.0")), UTF8))
ESCAPED = OPENMETRICS._replace(content_type=OPENMETRICS.content_type + "; escaping=underscores")    # to who names a scheme
FORMATS = {form.name: form for form in (JSON, TEXT, OPENMETRICS)}
SCRAPED = (TEXT.kind, OPENMETRICS.kind, "application/vnd.google.protobuf")  # named by scrapers, who cannot read JSON


def parts(text, separator):
    """What stands between the separators, those within quoted strings aside."""
    found = [""]
    for piece in re.findall(QUOTED % (separator, separator), text):
        if piece == separator:
            found.append("")
        else:
            found[-1] += piece
    return [part.strip(" \t") for part in found]


def read_entry(entry):
    """The Range of an entry of Accept or Accept-Encoding, None for one that is malformed."""
    kind, parameters = parts(entry, ";")[0], {}
    for parameter in filter(None, parts(entry, ";")[1:]):
        name, _, value = parameter.partition("=")
        if not TOKEN.fullmatch(name) or not TOKEN.fullmatch(value) and not re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
            return None
        parameters.setdefault(name.lower(), value.strip('"').lower())
    quality = parameters.pop("q", "1")
    if not QUALITY.fullmatch(quality) or not all(TOKEN.fullmatch(token) for token in kind.split("/")):
        return None
    return Range(kind.lower(), parameters, float(quality))


def read_field(value):
    entries = [read_entry(entry) for entry in parts(value, ",")] if len(value) <= FIELD_MAX else []
    return [entry for entry in entries if entry]


def specificity(form, entry):
    """How closely a range describes a format (RFC 9110, 12.5.1), 0 where it does not."""
    if entry.kind == "*/*":
        return 1
    if entry.kind == form.kind.split("/")[0] + "/*":
        return 2
    suits = entry.kind == form.kind and all(entry.parameters.get(name, "") in values for name, values in form.limits)
    return 3 + sum(name in entry.parameters for name, _ in form.limits) if suits else 0


def closest(form, entries):
    """(quality, whether the format is named, place, Range) by the range that describes the format most closely, or None."""
    ranked = [(specificity(form, entry), -place, entry) for place, entry in enumerate(entries)]
    rank, place, entry = max(ranked, key=lambda one: one[:2], default=(0, 0, None))
    return (entry.quality, rank >= 3, place, entry) if rank else None


@functools.lru_cache(maxsize=16)
def choose(accept):
    """The Format for this Accept: that of the highest quality; of equals the one that is named, then the one named first. JSON
    where it leaves the choice to us or has nothing that we can produce, but TEXT to who names a format of scrapers."""
    entries = read_field(accept)
    default = TEXT if any(entry.kind in SCRAPED and entry.quality for entry in entries) else JSON
    order = [default] + [form for form in (JSON, TEXT, OPENMETRICS) if form is not default]
    offers = [(form, closest(form, entries)) for form in order]
    offers = [(form, offer) for form, offer in offers if offer and offer[0]]
    form, offer = max(offers, key=lambda one: one[1][:3], default=(default, None))
    return ESCAPED if form is OPENMETRICS and offer and "escaping" in offer[3].parameters else form


@functools.lru_cache(maxsize=16)
def compressed(accept_encoding):
    """Whether gzip is offered, and not less wanted than no coding."""
    qualities = {entry.kind: entry.quality for entry in reversed(read_field(accept_encoding))}
    offered = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0)))
    return offered > 0 and offered >= qualities.get("identity", 0)
