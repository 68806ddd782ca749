#!/usr/bin/env python3
"""Judges a run of critest. usage: judge.py EXPECTED CONTAINERD COLUMN FOLDER [VERDICTS], where FOLDER holds junit.xml and left.
Writes every spec's verdict to VERDICTS, if named. The last line sums up as Rust's test runner does."""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

expected_file, containerd, column, folder = sys.argv[1:5]
folder = pathlib.Path(folder)
expected = []
for line in pathlib.Path(expected_file).read_text().splitlines():
    if line and not line.startswith("#"):
        where, rule = line.split(": ", 1)
        name, words, reason = (part.strip() for part in re.fullmatch(r"(.*?) =>(.*?) => (.*)", rule).groups())
        if not {"*", column, f"{column}@{containerd}"}.isdisjoint(where.split(",")):
            expected.append((re.compile(name), words, reason))

if not (folder / "junit.xml").exists():
    sys.exit(f"critest left no report in {folder}: see the logs beside it")
counts = dict.fromkeys(["passed", "expected", "skipped", "failed"], 0)
verdicts = {}
for spec in xml.etree.ElementTree.parse(folder / "junit.xml").iter("testcase"):
    name, status = spec.get("name"), spec.get("status")
    # The suite's own nodes are no specs: only their failure is news.
    if not name.startswith("[It]") and status in ("passed", "skipped"):
        continue
    rule = next(((words, reason) for pattern, words, reason in expected if pattern.search(name)), None)
    if status == "skipped":
        # Also those that a -ginkgo.focus leaves out: said only where critest has a reason.
        verdict, reason = "skipped", spec.find("skipped").get("message", "").removeprefix("skipped").strip(" -")
    elif status == "passed":
        verdict, reason = ("failed", "it passed, and is expected to fail") if rule else ("passed", "")
    else:
        failure = next((spec.find(kind) for kind in ("failure", "error") if spec.find(kind) is not None), None)
        message = failure.get("message", "") if failure is not None else ""
        if rule and rule[0] in message:
            verdict, reason = "expected", rule[1]
        else:
            verdict, reason = "failed", message[:600]
    counts[verdict] += 1
    verdicts[name] = {"verdict": verdict, "reason": reason}
    if verdict != "skipped" or reason:
        print(f"{verdict:8} {float(spec.get('time', 0)):6.1f} s  {name}{': ' if reason else ''}{reason}")

left = (folder / "left").read_text() if (folder / "left").exists() else "the host ended too early\n"
if left:
    print(f"left behind:\n{left}", end="")
if len(sys.argv) > 5 and verdicts:
    describe = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--dirty"]
    # The sources may have come without their history; half an hour's run is not lost for that.
    said = subprocess.run(describe, capture_output=True, text=True, check=False) if shutil.which("git") else None
    commit = said.stdout.strip() if said and said.returncode == 0 else "unknown"
    verdict = {"containerd": containerd, "column": column, "commit": commit, "left": left, "specs": verdicts}
    pathlib.Path(sys.argv[5]).write_text(json.dumps(verdict, indent=1))
print(f"{counts['passed']} passed, {counts['expected']} failed as expected, {counts['skipped']} skipped by critest, {counts['failed']} failed")
ok = not (counts["failed"] or left) and counts["passed"] > 0
print(f"test result: {'ok' if ok else 'FAILED'}. {counts['passed'] + counts['expected']} passed; {counts['failed']} failed; "
      f"{counts['skipped']} ignored; 0 measured; 0 filtered out")
sys.exit(not ok)
