"""Cases as JUnit's XML, which every continuous integration reads."""

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from planish.report.cases import Case, Cases

STRANGE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even as an escape."""


def junit(found: Cases) -> str:
    """Return the document: a check that failed is a failure, one that is open is skipped, a warning passes and says so.

    JUnit has no standard; this is what Jenkins, GitLab, GitHub's actions and pytest have in common.
    """
    skipped = sum(case.verdict == "open" for case in found.cases)
    counts = {"tests": len(found.cases), "failures": len(found.failed), "errors": 0, "skipped": skipped}
    told = {key: _clean(value) for key, value in counts.items()}
    suites = Element("testsuites", told)
    suite = SubElement(suites, "testsuite", {"name": _clean(f"planish {found.kind} of {found.model}"), **told})
    properties = SubElement(suite, "properties")
    for name, value in found.facts.items():
        if value not in (None, ""):
            SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for case in found.cases:
        _add(suite, case, _clean(f"planish.{found.kind}.{found.model}"))
    indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suites, encoding="unicode") + "\n"


def _add(suite: Element, case: Case, home: str) -> None:
    element = SubElement(suite, "testcase", {"classname": home, "name": _clean(case.name)})
    told = _clean("\n".join(filter(None, (case.told, case.advice))))
    if case.verdict == "fail":
        SubElement(element, "failure", {"message": _clean(case.told), "type": "fail"}).text = told
    elif case.verdict == "open":
        SubElement(element, "skipped", {"message": _clean(case.told)})
    else:
        SubElement(element, "system-out").text = f"warning: {told}" if case.verdict == "warn" else told


def _clean(value: object) -> str:
    return STRANGE.sub("\N{REPLACEMENT CHARACTER}", str(value))
