"""The figures of one snapshot as Prometheus and its kin read them: text format 0.0.4 and OpenMetrics 1.0.

    write(TEXT, values(figures, blocks, state)) -> bytes

FAMILIES says what there is, `values` what each is now: from the Figures, and from the blocks of the JSON answer that are about
the service itself, so that all formats have the same numbers. No sample has a timestamp, no family a _created.
"""

import collections
import itertools
import re

from exposition import OUTCOMES, Lane, deliveries, shipments_document, sums, unix_time

MODES = ("air", "road", "rail", "ocean", "parcel", "multimodal")
CARRIERS = 100          # carriers with series of their own, those with most shipments
REASONS = 50            # reasons of an exception with a series of their own
LABEL_MAX = 100         # characters of a label's value
OTHER, UNKNOWN = "other", "unknown"     # beyond these bounds; not recorded, or none of a closed list
INFINITE = float("inf")
SUFFIXES = {"counter": "_total", "info": "_info"}
ENDS = ("refused", "evicted", "head_timeouts", "idle_timeouts", "write_timeouts", "tls_failures")   # of webserver.COUNTS

Family = collections.namedtuple("Family", "name kind unit labels help")     # the name without its suffix
State = collections.namedtuple("State", "reason migrating refused routes reasons usage")   # what the blocks do not say
Histogram = collections.namedtuple("Histogram", "buckets sum")  # buckets: (upper bound, count up to it), the last bound infinite
Dialect = collections.namedtuple("Dialect", "head bound end")


def table(*rows):
    return tuple(Family(name, kind, unit, tuple(labels.split()), words) for name, kind, unit, labels, words in rows)


FAMILIES = table(
    ("logistics_up", "gauge", "", "", "1 where this answer has shipment figures, 0 where the database gave none."),
    ("logistics_stale", "gauge", "", "",
     "1 where the shipment figures are of an older moment: a lock or a migration hides newer ones."),
    ("logistics_last_success_timestamp_seconds", "gauge", "seconds", "",
     "The moment of the last shipment figures, those in this answer where it has any."),

    ("logistics_shipments", "gauge", "", "status", "Shipments now, by status."),
    ("logistics_overdue_shipments", "gauge", "", "age", "Open shipments whose promise has run out, by how long ago that was."),
    ("logistics_exception_shipments", "gauge", "", "reason", "Shipments in exception now, by its reason."),
    ("logistics_other_exception_reasons", "gauge", "", "", "Reasons that are counted together as other."),
    ("logistics_delivered_shipments", "gauge", "", "outcome",
     "Shipments with status delivered now, by whether their promise was kept."),
    ("logistics_deliveries", "counter", "", "outcome",
     "Deliveries ever, by whether the promise was kept; one corrected to another outcome counts there too. Never falls."),
    ("logistics_transit_seconds", "histogram", "seconds", "",
     "Transit times of the shipments with status delivered now; falls when one is deleted or corrected."),
    ("logistics_negative_transit_shipments", "gauge", "", "", "Shipments delivered before their start: data errors."),
    ("logistics_carrier_shipments", "gauge", "", "carrier", "Shipments now, by carrier."),
    ("logistics_carrier_overdue_shipments", "gauge", "", "carrier", "Overdue shipments, by carrier."),
    ("logistics_carrier_delivered_shipments", "gauge", "", "carrier outcome",
     "Shipments with status delivered now, by carrier and by whether their promise was kept."),
    ("logistics_other_carriers", "gauge", "", "", "Carriers that are counted together as other."),
    ("logistics_mode_shipments", "gauge", "", "mode", "Shipments now, by mode of transport."),
    ("logistics_mode_overdue_shipments", "gauge", "", "mode", "Overdue shipments, by mode of transport."),
    ("logistics_newest_change_timestamp_seconds", "gauge", "seconds", "",
     "The newest change of a shipment that is not in the future, 0 where there are no shipments."),
    ("logistics_future_changes", "gauge", "", "", "Shipments whose change is dated in the future, counted up to 1000."),

    ("logistics_database_trouble", "gauge", "", "reason", "1 for what is wrong with the database now, 0 for what is not."),
    ("logistics_database_queries", "counter", "", "", "Snapshots of the database that were worked out."),
    ("logistics_database_query_failures", "counter", "", "reason", "Attempts to read the database that failed, by reason."),
    ("logistics_database_query_duration_seconds", "histogram", "seconds", "", "Time that the queries of a snapshot took."),
    ("logistics_database_replaced", "counter", "", "", "Times that another file took the place of the database."),
    ("logistics_database_size_bytes", "gauge", "bytes", "", "Size of the database file when it was last seen."),
    ("logistics_schema_version", "gauge", "", "", "Version of the database's schema at the last figures, 0 before the first."),
    ("logistics_migration_running", "gauge", "", "", "1 while the schema of the database is being changed."),

    ("logistics_http_requests", "counter", "", "route code", "Requests answered, by route and status code."),
    ("logistics_http_errors", "counter", "", "route", "Requests answered with a status code of 500 or more, by route."),
    ("logistics_http_request_duration_seconds", "histogram", "seconds", "",
     "Time from the whole request to the answer ready to be sent."),
    ("logistics_http_requests_in_flight", "gauge", "", "", "Requests being answered now, this one included."),
    ("logistics_http_connections_open", "gauge", "", "", "Connections open now, this one included."),
    ("logistics_http_connections_limit", "gauge", "", "", "Connections that may be open at once."),
    ("logistics_http_connections_accepted", "counter", "", "", "Connections accepted."),
    ("logistics_http_connections_ended", "counter", "", "cause", "Connections that the service refused or ended, by cause."),
    ("logistics_tls_certificate_expiry_timestamp_seconds", "gauge", "seconds", "", "The end of the certificate that is served."),

    ("logistics_log_errors", "counter", "", "", "Events of level ERROR, but for those that the check's own requests met."),
    ("logistics_log_fallbacks", "counter", "", "", "Times that the log file could not be written and stdout took its place."),
    ("logistics_log_fallback", "gauge", "", "", "1 while the log goes to stdout because the log file cannot be written."),
    ("logistics_log_lost_lines", "counter", "", "", "Log lines that neither the file nor stdout took."),
    ("logistics_log_thinned_lines", "counter", "", "", "Log lines left out of floods of the same event, and told as a number."),

    ("logistics_build", "info", "", "version python sqlite", "What serves: its release, and what it runs on."),
    ("logistics_start_timestamp_seconds", "gauge", "seconds", "",
     "When this instance started, or was reloaded: counters began at 0."),
    ("logistics_reload_refused", "gauge", "", "", "1 from a refused reload until a good one or a restart."),
    ("process_cpu_seconds", "counter", "seconds", "", "Processor time of the process, in user and in system mode."),
    ("process_resident_memory_bytes", "gauge", "bytes", "", "Memory of the process that is in RAM."),
    ("process_virtual_memory_bytes", "gauge", "bytes", "", "Address space of the process."),
    ("process_open_fds", "gauge", "", "", "File descriptors that are open."),
    ("process_max_fds", "gauge", "", "", "File descriptors that may be open."),
    ("process_start_time_seconds", "gauge", "seconds", "", "When the process started; a reload does not change it."),
)

# Values: a number, {label values: number} or a Histogram by the family's name; None for what there is none of

def shown(name):
    """A text of the database as a label's value: any character is allowed there."""
    return name[:LABEL_MAX] or UNKNOWN


def bounded(names, most):
    """name -> label value: its own for the first ones, OTHER beyond them. No mistake in the data can make more series."""
    return {name: shown(name) if place < most else OTHER for place, name in enumerate(names)}


def tally(pairs, known=()):
    """{label values: sum} of (label values, count) pairs; 0 for those known that have none. What has become the same label is one
    series."""
    totals = dict.fromkeys(known, 0)
    for labels, count in pairs:
        totals[labels] = totals.get(labels, 0) + count
    return totals


def transit_histogram(figures, lane):
    counts, finite = sum(figures.mode_transit.values(), collections.Counter()), figures.bounds[:-1]
    reached = itertools.accumulate(counts[bound] for bound in finite)
    return Histogram(list(zip(finite, reached)) + [(INFINITE, sum(counts.values()))], lane.transit_seconds)


def outcomes(lane):
    return dict(zip(OUTCOMES, (lane.on_time, lane.late, lane.delivered - lane.on_time - lane.late)))


def whole_values(figures):
    """Of all shipments together."""
    lane = Lane(None, *sums(figures.modes, Lane, "shipments"))
    document = shipments_document(figures, lane)
    statuses = {(status,): count for status, count in document["by_status"].items()}
    statuses[UNKNOWN,] = lane.shipments - sum(statuses.values())
    reasons = bounded([reason for reason, _ in figures.exceptions], REASONS)
    return {
        "logistics_shipments": statuses,
        "logistics_overdue_shipments": {(age,): count for age, count in document["overdue_by_age"].items()},
        "logistics_exception_shipments": tally(((reasons[reason],), count) for reason, count in figures.exceptions),
        "logistics_other_exception_reasons": len(figures.exceptions[REASONS:]),
        "logistics_delivered_shipments": {(outcome,): count for outcome, count in outcomes(lane).items()},
        "logistics_deliveries": {(outcome,): total for outcome, total in deliveries(figures).items()},
        "logistics_transit_seconds": transit_histogram(figures, lane),
        "logistics_negative_transit_shipments": lane.negative,
        "logistics_newest_change_timestamp_seconds": unix_time(figures.newest_change) if figures.newest_change else 0,
        "logistics_future_changes": figures.future_changes,
    }


def part_values(figures):
    """Of the shipments of each carrier and of each mode."""
    carriers = bounded([lane.name for lane in figures.carriers], CARRIERS)
    modes = collections.defaultdict(lambda: UNKNOWN, zip(MODES, MODES))
    own, known = tally([((label,), 0) for label in carriers.values()]), [(mode,) for mode in MODES + (UNKNOWN,)]
    return {
        "logistics_carrier_shipments": tally(((carriers[lane.name],), lane.shipments) for lane in figures.carriers),
        "logistics_carrier_overdue_shipments": tally((((carriers[row.carrier],), row.shipments) for row in figures.overdue), own),
        "logistics_carrier_delivered_shipments": tally(
            ((carriers[lane.name], outcome), count) for lane in figures.carriers for outcome, count in outcomes(lane).items()),
        "logistics_other_carriers": len(figures.carriers[CARRIERS:]),
        "logistics_mode_shipments": tally((((modes[lane.name],), lane.shipments) for lane in figures.modes), known),
        "logistics_mode_overdue_shipments": tally((((modes[row.mode],), row.shipments) for row in figures.overdue), known),
    }


def durations(block):
    """The Histogram of a block with buckets and sum."""
    return Histogram([(INFINITE if bucket["le"] is None else bucket["le"], bucket["count"]) for bucket in block["buckets"]],
                     block["sum"])


def database_values(block, state):
    figures_at = block["figures_at"]
    known = [(reason,) for reason in state.reasons]
    return {
        "logistics_last_success_timestamp_seconds": unix_time(figures_at) if figures_at else 0,
        "logistics_database_trouble": {(reason,): reason == state.reason for reason in state.reasons},
        "logistics_database_queries": block["queries_total"],
        "logistics_database_query_failures": tally((((reason,), count) for reason, count in block["failures"].items()), known),
        "logistics_database_query_duration_seconds": durations(block["query_seconds"]),
        "logistics_database_replaced": block["replaced_total"],
        "logistics_database_size_bytes": block["size_bytes"],
        "logistics_schema_version": block["schema_version"] or 0,
        "logistics_migration_running": state.migrating,
    }


def traffic_values(requests, connections, tls, state):
    answered = [(route, code, count) for route, codes in requests["by_route"].items() for code, count in codes.items()]
    return {
        "logistics_http_requests": tally((((route, code), count) for route, code, count in answered),
                                         [(route, "404" if route == OTHER else "200") for route in state.routes]),
        "logistics_http_errors": tally((((route,), count) for route, code, count in answered if code >= "500"),
                                       [(route,) for route in state.routes]),
        "logistics_http_request_duration_seconds": durations(requests["latency_seconds"]),
        "logistics_http_requests_in_flight": requests["in_flight"],
        "logistics_http_connections_open": connections["open"],
        "logistics_http_connections_limit": connections["limit"],
        "logistics_http_connections_accepted": connections["accepted_total"],
        "logistics_http_connections_ended": {(cause,): connections[cause + "_total"] for cause in ENDS},
        "logistics_tls_certificate_expiry_timestamp_seconds": tls and unix_time(tls["expires_at"]),
    }


def process_values(service, log, state):
    usage = state.usage
    return {
        "logistics_log_errors": log["errors_total"],
        "logistics_log_fallbacks": log["fallbacks_total"],
        "logistics_log_fallback": log["fallback"],
        "logistics_log_lost_lines": log["lost_lines_total"],
        "logistics_log_thinned_lines": log["thinned_lines_total"],
        "logistics_build": {(service["version"], service["python"], service["sqlite"]): 1},
        "logistics_start_timestamp_seconds": unix_time(service["started_at"]),
        "logistics_reload_refused": state.refused,
        "process_cpu_seconds": usage and usage.cpu_seconds,
        "process_resident_memory_bytes": usage and usage.resident_bytes,
        "process_virtual_memory_bytes": usage and usage.virtual_bytes,
        "process_open_fds": usage and usage.open_files,
        "process_max_fds": usage and usage.max_files,
        "process_start_time_seconds": usage and usage.started,
    }


def values(figures, blocks, state):
    """The values of all families; without Figures, of those about the service and its database alone. The state's reason is
    what keeps newer ones from being read."""
    found = {"logistics_up": figures is not None, "logistics_stale": figures is not None and state.reason is not None}
    if figures:
        found.update(whole_values(figures))
        found.update(part_values(figures))
    found.update(database_values(blocks["database"], state))
    found.update(traffic_values(blocks["requests"], blocks["connections"], blocks["tls"], state))
    found.update(process_values(blocks["service"], blocks["logging"], state))
    return found


# Writing: prometheus.io/docs/instrumenting/exposition_formats, and the OpenMetrics 1.0 specification

def number(value):
    if value == INFINITE:
        return "+Inf"
    return "%d" % value if isinstance(value, int) else repr(value)


def short_bound(value):
    """An upper bound as Go's %g has it, which text 0.0.4 is usually written by."""
    if value == INFINITE:
        return "+Inf"
    if value < 1e6:
        return "%.15g" % value
    mantissa, exponent = ("%.14e" % value).split("e")
    return mantissa.rstrip("0").rstrip(".") + "e" + exponent


def canonical_bound(value):
    """The same as a canonical number of OpenMetrics, which shows that it is no whole number."""
    text = short_bound(value)
    return text if re.search("[.e]|Inf", text) else text + ".0"


def quoted(text):
    return '"%s"' % text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def series(name, labels, label_values):
    pairs = ",".join("%s=%s" % (label, quoted(value)) for label, value in zip(labels, label_values))
    return "%s{%s}" % (name, pairs) if pairs else name


def sample_lines(family, value, bound_of):
    name = family.name
    if family.kind == "histogram":
        for bound, count in value.buckets:
            yield '%s_bucket{le="%s"} %d' % (name, bound_of(bound), count)
        yield "%s_sum %s" % (name, number(value.sum))
        yield "%s_count %d" % (name, value.buckets[-1][1])
    else:
        for label_values, one in (value if isinstance(value, dict) else {(): value}).items():
            yield "%s %s" % (series(name + SUFFIXES.get(family.kind, ""), family.labels, label_values), number(one))


def text_head(family):
    name = family.name + SUFFIXES.get(family.kind, "")
    yield "# HELP %s %s" % (name, family.help)
    yield "# TYPE %s %s" % (name, "gauge" if family.kind == "info" else family.kind)


def openmetrics_head(family):
    yield "# TYPE %s %s" % (family.name, family.kind)
    if family.unit:
        yield "# UNIT %s %s" % (family.name, family.unit)
    yield "# HELP %s %s" % (family.name, family.help)


TEXT = Dialect(text_head, short_bound, "")
OPENMETRICS = Dialect(openmetrics_head, canonical_bound, "# EOF\n")


def write(dialect, found):
    """The values as UTF-8 in a dialect, in the order of FAMILIES; a family without any is left out."""
    lines = []
    for family in FAMILIES:
        value = found.get(family.name)
        if value is not None and value != {}:
            lines += dialect.head(family)
            lines += sample_lines(family, value, dialect.bound)
    return ("\n".join(lines) + "\n" + dialect.end).encode("utf-8")
