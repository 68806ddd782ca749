#!/usr/bin/env python3
"""Judges a run of critest. usage: report.py REFUSED CONTAINERD HANDLER FOLDER, where FOLDER holds junit.xml and left.
The last line sums up as Rust's test runner does."""
import pathlib
import re
import sys
import xml.etree.ElementTree

refused_file, containerd, handler, folder = sys.argv[1:]
folder = pathlib.Path(folder)
refused = []
for line in pathlib.Path(refused_file).read_text().splitlines():
    only, rule = re.match(r"(?:([\d.]+): )?(.*)", line).groups()
    if rule and not rule.startswith("#") and handler == "ravelin" and only in (None, containerd):
        name, words = rule.split(" => ")
        refused.append((re.compile(name), words))

if not (folder / "junit.xml").exists():
    sys.exit(f"critest left no report in {folder}: see the logs beside it")
counts = dict.fromkeys(["passed", "refused", "skipped", "failed"], 0)
for spec in xml.etree.ElementTree.parse(folder / "junit.xml").iter("testcase"):
    name, status = spec.get("name"), spec.get("status")
    # The suite's own nodes are no specs: only their failure is news.
    if not name.startswith("[It]") and status in ("passed", "skipped"):
        continue
    words = next((words for pattern, words in refused if pattern.search(name)), None)
    if status == "skipped":
        # Also those that a -ginkgo.focus leaves out: said only where critest has a reason.
        verdict, reason = "skipped", spec.find("skipped").get("message", "").removeprefix("skipped").strip(" -")
    elif status == "passed":
        verdict, reason = ("failed", "is to be refused") if words is not None else ("passed", "")
    else:
        failure = next((spec.find(kind) for kind in ("failure", "error") if spec.find(kind) is not None), None)
        message = failure.get("message", "") if failure is not None else ""
        verdict = "refused" if words is not None and words in message else "failed"
        reason = "" if verdict == "refused" else f"{message[:600]}"
    counts[verdict] += 1
    if verdict != "skipped" or reason:
        print(f"{verdict:8} {float(spec.get('time', 0)):6.1f} s  {name}{': ' if reason else ''}{reason}")

left = (folder / "left").read_text() if (folder / "left").exists() else "the host ended too early\n"
if left:
    print(f"left behind:\n{left}", end="")
print(f"{counts['passed']} passed, {counts['refused']} refused as they must be, {counts['skipped']} skipped, {counts['failed']} failed")
ok = not (counts["failed"] or left) and counts["passed"] > 0
print(f"test result: {'ok' if ok else 'FAILED'}. {counts['passed'] + counts['refused']} passed; {counts['failed']} failed; "
      f"{counts['skipped']} ignored; 0 measured; 0 filtered out")
sys.exit(not ok)
