#!/usr/bin/env python3
"""Writes docs/conformance.md from the verdicts of whole runs. usage: conformance.py VERDICTS... > docs/conformance.md"""
import json
import pathlib
import re
import sys

# Of both containerds; one of which there is no whole run is in the table all the same.
COLUMNS = {"1.6": ["runc", "fargate", "guest"], "2.3": ["runc", "fargate", "guest", "sandbox"]}
MARKS = {"passed": "passed", "expected": "differs", "skipped": "skipped", "failed": "**FAILED**"}

found = [json.loads(pathlib.Path(file).read_text()) for file in sys.argv[1:]]
found = {(run["containerd"], run["column"]): run for run in found}
runs = [
    found.get((containerd, column), {"containerd": containerd, "column": column, "commit": "no run", "left": "", "specs": {}})
    for containerd, columns in COLUMNS.items()
    for column in columns
]


def title(run):
    return f"{run['column']}, {run['containerd']}"


def count(run, verdict):
    return sum(spec["verdict"] == verdict for spec in run["specs"].values())


def short(name):
    return re.sub(r"\s+", " ", name.removeprefix("[It] [k8s.io] ").removeprefix("[It] ")).replace("|", "\\|")


print(f"""# Conformance

critest 1.36.0, Kubernetes's conformance suite for container runtimes, whole and unchanged, on the emulated host; written by `make critest`.
A column is a runtime and the containerd it ran under: *runc* is the control, *fargate* is Ravelin as it comes, *guest* is Ravelin with
`[policy] mode = "guest"`, *sandbox* is Ravelin as it comes, through containerd's sandbox API. *differs* is a spec that fails
and must: with the policy's words where it asks for what the policy refuses, or for a difference that is known, whose words are checked where they are ours;
the number leads to the reason. *skipped* is critest's own decision, for example where a containerd does not offer what the spec tests.

| | {' | '.join(title(run) for run in runs)} |
|---|{'---|' * len(runs)}""")
for verdict, text in [("passed", "passed"), ("expected", "differs, for the reason given"), ("skipped", "skipped by critest"), ("failed", "failed")]:
    print(f"| {text} | {' | '.join(str(count(run, verdict)) for run in runs)} |")
print(f"| left on the host afterwards | {' | '.join('–' if not run['specs'] else '**something**' if run['left'] else 'nothing' for run in runs)} |")
print(f"| at commit | {' | '.join(run['commit'] for run in runs)} |")
for run in runs:
    if run["left"]:
        print(f"\n{title(run)} left behind:\n\n```\n{run['left'][:2000]}```")

reasons = {}
names = sorted({name for run in runs for name in run["specs"]}, key=short)
print(f"\n## Spec by spec\n\n| spec | {' | '.join(title(run) for run in runs)} |\n|---|{'---|' * len(runs)}")
for name in names:
    cells = []
    for run in runs:
        spec = run["specs"].get(name)
        if spec is None:
            cells.append("–")
            continue
        mark = MARKS[spec["verdict"]]
        reason = spec["reason"].splitlines()[0][:200].replace("|", "\\|") if spec["reason"] else ""
        if reason:
            mark += f" [{reasons.setdefault(reason, len(reasons) + 1)}]"
        cells.append(mark)
    print(f"| {short(name)} | {' | '.join(cells)} |")
if reasons:
    print("\n## Reasons\n")
    for reason, number in reasons.items():
        print(f"{number}. {reason}")
