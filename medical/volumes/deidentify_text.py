"""Free-text reports: header lines, dates, numbers that identify, and known names, replaced by a mark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MARK = "[REMOVED]"
_FIELDS = (
    r"(?:patient(?:'s)?(?:\s+(?:name|id))?|name|mrn|medical record(?:\s+(?:number|no\.?))?"
    r"|accession(?:\s+(?:number|no\.?))?|date of birth|birth ?date|dob|referring(?:\s+physician)?|physician"
    r"|radiologist|dictated by|signed by|address|phone|tel)"
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("header field", re.compile(rf"(?im)^(\s*{_FIELDS}\s*[:#]\s*)(\S[^\n]*)$")),
    ("e-mail", re.compile(r"()(\b[\w.+-]+@[\w-]+\.[\w.]+\b)")),
    ("date", re.compile(r"()(\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b)")),
    (
        "date",
        re.compile(rf"(?i)()(\b\d{{1,2}}\.?\s+{_MONTH}\.?,?\s+\d{{4}}\b|\b{_MONTH}\.?\s+\d{{1,2}},?\s+\d{{4}}\b)"),
    ),
    ("record number", re.compile(r"(?i)(\b(?:mrn|id|acc(?:ession)?)\W{0,3})(\w*\d{4,}\w*)")),
    ("phone", re.compile(r"()(\+?\(?\d{2,4}\)?[\s./-]\d{3,4}[\s.-]\d{3,4}\b)")),
    ("title and name", re.compile(r"((?:\bDr|\bMr|\bMrs|\bMs|\bProf)\.?\s+)([A-Z][\w'-]+(?:\s+[A-Z][\w'-]+)?)")),
)
"""Kind -> pattern; the second group is replaced."""


def scrub_report(text: str, names: Sequence[str] = ()) -> tuple[str, dict[str, int]]:
    """Replace what identifies a person in a report. An aid: names inside sentences are found only if given.

    Args:
        text: The report.
        names: Names or numbers known from elsewhere; replaced wherever they occur as words.

    Returns:
        The text, and how often each kind was replaced.

    Example:
        >>> scrub_report("Name: Jane Doe\\nThe liver is normal on 3/4/2021.")[0]
        'Name: [REMOVED]\\nThe liver is normal on [REMOVED].'
    """
    counts: Counter[str] = Counter()
    for name in sorted((part for one in names for part in re.split(r"[\s^,]+", one)), key=len, reverse=True):
        if len(name) > 1:
            text, found = re.subn(rf"(?i)\b{re.escape(name)}\b", MARK, text)
            counts["known name"] += found
    for kind, pattern in RULES:
        text, found = pattern.subn(lambda match: match[1] + MARK, text)
        counts[kind] += found
    return text, {kind: found for kind, found in counts.items() if found}
