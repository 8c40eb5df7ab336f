"""The figures of one snapshot as documents.

    metrics_document(Figures, hours of history) -> the shipment part of JSON /metrics

Figures in, plain dicts and lists out: what each field means stands in docs/metrics.md. Nothing to evaluate gives None, never 0.
"""

import calendar
import collections
import time

DAY = 86400             # s
DAILY_DAYS = 30         # days in the "daily" list
HISTORY_HOURS = 672     # most hourly points: 28 days, which lie within the daily ones
STATUSES = ("pending", "pre_transit", "in_transit", "out_for_delivery", "available_for_pickup", "attempted", "exception",
            "delivered", "returned", "cancelled")
OUTCOMES = ("on_time", "late", "not_evaluated")     # of a delivery
CARRIERS = 500          # carriers listed, those with most shipments; more are a mistake in the data, and no reader's bound
AGE_BANDS = (("under_1_day", 1), ("1_to_3_days", 3), ("3_to_7_days", 7), ("over_7_days", None))  # overdue for up to n days

Lane = collections.namedtuple("Lane", "name shipments open exception delivered on_time late late_seconds "
                                      "transits transit_seconds negative")
Overdue = collections.namedtuple("Overdue", "carrier mode shipments band0 band1 band2")  # the first three of AGE_BANDS
Hour = collections.namedtuple("Hour", "hour created delivered on_time late")
Figures = collections.namedtuple("Figures", "now bounds statuses carriers modes carrier_transit mode_transit overdue "
                                            "deliveries exceptions hours newest_change future_changes schema_version")


def instant(seconds):
    """Unix time as 'YYYY-MM-DDTHH:MM:SSZ'."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def hour_of(seconds):
    """Unix time as the hour 'YYYY-MM-DDTHH' of the rollups."""
    return time.strftime("%Y-%m-%dT%H", time.gmtime(seconds))


def unix_time(stamp):
    """The Unix time of an instant as the database writes it."""
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


def rounded(value, digits=6):
    return None if value is None else round(value, digits)


def ratio(part, whole, digits=6):
    return round(part / whole, digits) if whole else None


def sums(rows, shape, first):
    """The sums of the columns from the named one on; zeros where there are no rows."""
    place = shape._fields.index(first)
    return [sum(column) for column in list(zip(*rows))[place:]] if rows else [0] * (len(shape._fields) - place)


def quantile(counts, bounds, q):
    """The q-quantile of a Counter by upper bound, interpolated within its bucket from the bound below, as Prometheus does;
    one that lies in the last bucket, which has no end, is given as the bound below it. None without counts."""
    rank = q * sum(counts.values())
    seen, below = 0, 0
    for bound in bounds:
        if counts[bound] and seen + counts[bound] >= rank:
            return below if bound == bounds[-1] else below + (bound - below) * (rank - seen) / counts[bound]
        seen, below = seen + counts[bound], bound
    return None


def transit_document(lane, counts, bounds):
    return {
        "count": lane.transits,
        "mean": ratio(lane.transit_seconds, lane.transits, 1),
        "p50": rounded(quantile(counts, bounds, .5), 1),
        "p95": rounded(quantile(counts, bounds, .95), 1),
        "negative": lane.negative,
    }


def delivery_document(lane, counts, bounds):
    evaluated = lane.on_time + lane.late
    return {
        "delivered": lane.delivered,
        "evaluated": evaluated,
        "on_time": lane.on_time,
        "late": lane.late,
        "on_time_rate": ratio(lane.on_time, evaluated),
        "late_seconds": {"mean": ratio(lane.late_seconds, lane.late, 1)},
        "transit_seconds": transit_document(lane, counts, bounds),
    }


def deliveries(figures):
    """The counters by outcome."""
    return {outcome: figures.deliveries.get(outcome, 0) for outcome in OUTCOMES}


def lane_documents(label, lanes, transit, figures):
    """One object for each carrier or mode, most shipments first; label is the key that holds its name, null for unknown."""
    overdue = collections.Counter()
    for row in figures.overdue:
        overdue[getattr(row, label)] += row.shipments
    documents = []
    for lane in lanes:
        document = {label: lane.name or None, "shipments": lane.shipments, "open": lane.open, "overdue": overdue[lane.name],
                    "exception": lane.exception}
        document.update(delivery_document(lane, transit[lane.name], figures.bounds))
        documents.append(document)
    return documents


def shipments_document(figures, total):
    overdue = sum(row.shipments for row in figures.overdue)
    bands = sums(figures.overdue, Overdue, "band0")
    return {
        "total": total.shipments,
        "open": total.open,
        "overdue": overdue,
        "by_status": {status: figures.statuses.get(status, 0) for status in STATUSES},
        "overdue_by_age": dict(zip([name for name, _ in AGE_BANDS], bands + [overdue - sum(bands)])),
        "exceptions_by_reason": [{"reason": reason or None, "shipments": count} for reason, count in figures.exceptions],
    }


def flow_document(label, name, hours):
    created, delivered, on_time, late = sums(hours, Hour, "created")
    return {label: name, "created": created, "delivered": delivered, "on_time": on_time, "late": late,
            "on_time_rate": ratio(on_time, on_time + late)}


def daily_document(figures):
    by_day = collections.defaultdict(list)
    for hour in figures.hours:
        by_day[hour.hour[:10]].append(hour)
    days = [instant(figures.now - back * DAY)[:10] for back in reversed(range(DAILY_DAYS))]
    return [flow_document("date", day, by_day[day]) for day in days]


def history_document(figures, hours):
    """The last `hours` hourly points, oldest first; the last of them is the hour that is not over."""
    by_hour = {hour.hour: [hour] for hour in figures.hours}
    names = [hour_of(figures.now - back * 3600) for back in reversed(range(hours))]
    return [flow_document("hour", name, by_hour.get(name, ())) for name in names]


def metrics_document(figures, history):
    """The shipment figures: all of /metrics but the service's own blocks."""
    total = Lane(None, *sums(figures.modes, Lane, "shipments"))
    transit = sum(figures.mode_transit.values(), collections.Counter())
    document = {
        "shipments": shipments_document(figures, total),
        "delivery": dict(delivery_document(total, transit, figures.bounds), deliveries_total=deliveries(figures)),
        "by_carrier": lane_documents("carrier", figures.carriers[:CARRIERS], figures.carrier_transit, figures),
        "carriers_omitted": len(figures.carriers[CARRIERS:]),
        "by_mode": lane_documents("mode", figures.modes, figures.mode_transit, figures),
        "daily": daily_document(figures),
    }
    if history:
        document["history"] = history_document(figures, history)
    return document
