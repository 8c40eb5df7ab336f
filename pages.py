"""The pages that a person reads: the dashboard, its figures for a browser without JavaScript, entries of the runbook.

    Dashboard(path)             dashboard.html, and the policy by which its own style and script run and nothing else does
    summary(document, checks)   JSON /metrics and the checks that do not pass, as HTML
    excuse(trouble, checks)     why there are no figures, as HTML
    entry(text, word)           one entry of the runbook

Text in, text out: nothing here asks the database. Every value is escaped where it enters HTML.
"""

import base64
import hashlib
import html
import re

MARK = "<!-- summary -->"   # where dashboard.html wants what stands in for its script
POLICY = ("default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; connect-src 'self'; img-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")    # Content Security Policy Level 3
CARRIERS = 10               # in the summary, those with most overdue shipments


def digest(element, source):
    """The hash of the one element's text, as a policy has it. Raises ValueError."""
    found = re.findall("<%s>(.*?)</%s>" % (element, element), source, re.DOTALL)
    if len(found) != 1:
        raise ValueError("it has not one %s of its own" % element)
    return base64.b64encode(hashlib.sha256(found[0].encode("utf-8")).digest()).decode()


class Dashboard:
    """The page as the file is at this moment. Raises OSError, and ValueError for a file that is another."""

    def __init__(self, path):
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        self.policy = POLICY % (digest("script", source), digest("style", source))
        self.head, mark, self.tail = source.partition(MARK)
        if not mark:
            raise ValueError("it has no place for the summary")

    def body(self, summary):
        return (self.head + summary + self.tail).encode("utf-8", "backslashreplace")


def element(name, text, attributes=""):
    return "<%s%s>%s</%s>" % (name, attributes, html.escape(str(text)), name)


def count(number):
    return "{:,}".format(number)


def percent(part, whole):
    """A share in words: never 100 % for less than all, nor 0 % for more than none."""
    if not whole:
        return "\N{EM DASH}"
    tenths = min(round(1000 * part / whole), 1000 if part == whole else 999)
    return "%.1f %%" % (max(tenths, 1 if part else 0) / 10)


def share(part, whole):
    """The same with how many it is a share of."""
    return "%s of %s" % (percent(part, whole), count(whole))


def table(caption, header, rows):
    """Rows of (name, value, ...) under the header."""
    lines = ["<table>", element("caption", caption), "<tr>"]
    lines += [element("th", cell, ' scope="col"') for cell in header]
    for name, *values in rows:
        lines += ["<tr>", element("th", name, ' scope="row"')] + [element("td", value) for value in values]
    return "\n".join(lines + ["</table>"])


def figure_rows(document):
    shipments, delivery, today = document["shipments"], document["delivery"], document["daily"][-1]
    month = [sum(day[name] for day in document["daily"]) for name in ("on_time", "late")]
    yield "Shipments", count(shipments["total"])
    yield "Open", count(shipments["open"])
    yield "Overdue", count(shipments["overdue"])
    yield "In exception", count(shipments["by_status"]["exception"])
    yield "Created today, UTC", count(today["created"])
    yield "Delivered today, UTC", count(today["delivered"])
    yield "On time today", share(today["on_time"], today["on_time"] + today["late"])
    yield "On time, last %d days" % len(document["daily"]), share(month[0], sum(month))
    yield "On time, ever", share(delivery["on_time"], delivery["evaluated"])


def finding(name, reason, words):
    """What is wrong, with the way to what to do about it."""
    link = element("a", reason, ' href="runbook?entry=%s"' % html.escape(reason))
    return "<li>%s %s: %s</li>" % (element("strong", name), link, html.escape(words))


def findings(checks):
    """The checks of /readyz that do not pass."""
    return [finding(name, one["reason"], one["output"]) for name, (one,) in checks.items() if one["status"] != "pass"]


def summary(document, checks):
    bad, stale = findings(checks), document["stale"]
    if stale:
        words = "these figures are %d s old: %s" % (stale["age_seconds"], stale["detail"])
        bad.insert(0, finding("Old figures", stale["reason"], words))
    carriers = sorted(document["by_carrier"], key=lambda one: (-one["overdue"], -one["late"]))[:CARRIERS]
    return "\n".join([
        "<ul>%s</ul>" % "".join(bad or ["<li>All checks pass.</li>"]),
        table("Figures of %s" % document["generated_at"], ("Figure", "Value"), figure_rows(document)),
        table("Carriers, most overdue first", ("Carrier", "Overdue", "Late", "On time"), [
            (one["carrier"] or "not recorded", count(one["overdue"]), count(one["late"]),
             percent(one["on_time"], one["evaluated"])) for one in carriers])])


def excuse(trouble, checks):
    return "<ul>%s</ul>" % "".join([finding("No figures", trouble.reason, trouble.detail)] + findings(checks))


def anchor(heading):
    """The anchor of a heading, made as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entry(text, word):
    """The section of a page whose heading has this anchor, up to the next heading that is no deeper; None without one."""
    lines, depth, code = [], 0, False
    for line in text.splitlines(True):
        code ^= line.startswith("```")      # in there a comment looks like a heading
        heading = None if code else re.match(r"(#+) (.+)", line)
        if heading and depth and len(heading.group(1)) <= depth:
            break
        if heading and not depth and anchor(heading.group(2)) == word:
            depth = len(heading.group(1))
        if depth:
            lines.append(line)
    return "".join(lines) or None
