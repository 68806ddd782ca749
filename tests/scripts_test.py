#!/usr/bin/env python3
"""Tests of the scripts that judge results, on small known inputs and with hosts that are not there. `make test-unit` runs them; the last line
is like that of Rust's test runner, to be added up with the others."""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from xml.sax.saxutils import quoteattr

TESTS = pathlib.Path(__file__).resolve().parent

# Stands in for tests/host/run: says and returns what the plan has for this host and attempt, and notes that it was called.
HOST = """#!/usr/bin/env python3
import json, pathlib, sys
root = pathlib.Path(__file__).parents[2]
log = sys.argv[sys.argv.index("--log") + 1]
name, _, attempt = log.split("-", 1)[1].rsplit("-", 2)
with (root / "calls").open("a") as calls:
    calls.write(f"{name} {attempt}\\n")
turn = json.loads((root / "plan").read_text())[name][int(attempt) - 1]
for file, text in turn.get("logs", {}).items():
    path = root / "target/host/logs" / log / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
print(turn.get("says", ""), end="")
sys.exit(turn.get("status", 0))
"""


def closing(passed, failed=0, ignored=0):
    """A closing line of Rust's test runner."""
    verdict = "FAILED" if failed else "ok"
    return f"test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in 0.50s\n"


def last(done):
    """The last line of an output, without the seconds."""
    return done.stdout.splitlines()[-1].split("; finished")[0]


class Case(unittest.TestCase):
    """A test with a folder of its own, which is also the repository that copied scripts see."""

    maxDiff = None

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="ravelin-scripts."))
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, name, text, mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def script(self, name, text):
        return self.write(name, text, 0o755)

    def copy(self, *names):
        for name in names:
            (self.root / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TESTS / name, self.root / "tests" / name)

    def call(self, program, *arguments, stdin="", **environment):
        """Runs a script; nothing it keeps is kept where the user's things are, and nobody's wishes reach it."""
        ours = {"PATH": os.environ["PATH"], "HOME": str(self.root), "TMPDIR": str(self.root), "LANG": "C.UTF-8"}
        command = [str(argument) for argument in (program, *arguments)]
        return subprocess.run(command, input=stdin, env={**ours, **environment}, capture_output=True, text=True, timeout=120, check=False)

    def calls(self):
        return sorted((self.root / "calls").read_text().splitlines())


class Summary(Case):
    def summary(self, text):
        return self.call(TESTS / "host/summary", stdin=text)

    def test_closing_lines_are_added_up(self):
        done = self.summary("running 3 tests\n" + closing(3, ignored=1) + "noise\n" + closing(4))
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s\n")

    def test_one_failed_run_is_a_failure_of_all(self):
        done = self.summary(closing(3) + closing(4, failed=2))
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"))

    def test_a_run_that_failed_without_a_failed_test_is_a_failure(self):
        done = self.summary(closing(3) + closing(0).replace("ok", "FAILED"))
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"))

    def test_nothing_is_no_success(self):
        done = self.summary("error: could not compile\n")
        self.assertEqual(done.returncode, 1)
        self.assertTrue(last(done).startswith("test result: FAILED. 0 passed; 0 failed;"))


class Reliability(Case):
    PAGE = "# Page\n<!-- faults: begin -->\nold\n<!-- faults: end -->\nbetween\n<!-- soak: begin -->\n<!-- soak: end -->\nend\n"

    def table(self, kind, rows):
        lines = self.write("faults.tsv", "".join("\t".join(row) + "\n" for row in rows))
        page = self.write("page.md", self.PAGE)
        done = self.call(TESTS / "faults/table", kind, lines, page, "abc1234")
        self.assertEqual(done.returncode, 0, done.stderr)
        return page.read_text()

    def fault(self, table, what, when, told, footprint="as it was"):
        return ["fault", table, what, when, told, "1.5" if footprint else "", footprint, ""]

    def test_a_fault_is_in_the_cell_of_its_step_and_its_process(self):
        page = self.table("faults", [
            ["note", "words"],
            self.fault("kill", "shim", "boots", "exit"),
            self.fault("kill", "mkfs", "boots", "not there", ""),
            self.fault("kill", "shim", "runs", "error", "the footprint differs: +1 file /run/x"),
        ])
        self.assertIn("| step | shim | mkfs |", page)
        self.assertIn("| boots | exit, 1.5 s | – |", page)
        self.assertIn("| runs | **error, 1.5 s: the footprint differs: +1 file /run/x** |  |", page)
        self.assertIn("2 faults, 1 with everything as it must be.", page)
        self.assertIn("at commit abc1234", page)
        self.assertNotIn("old", page)
        self.assertTrue(page.endswith("between\n<!-- soak: begin -->\n<!-- soak: end -->\nend\n"))

    def test_refused_calls_are_counted_by_caller_and_kind(self):
        page = self.table("faults", [
            self.fault("error", "none", "all calls are counted", "exit"),
            ["calls", "shim", "mmap", "300"],
            self.fault("error", "shim: mmap", "call 1 of about 300: no memory", "error"),
            self.fault("error", "shim: mmap", "call 300 of about 300: no memory", "nothing is lost"),
        ])
        self.assertIn("| shim: mmap | 300 | 2 | 1 | 0 | 1 | 1.5 s | all |", page)
        self.assertIn("2 faults, 2 with everything as it must be.", page)

    def test_a_soak_has_its_bounds_and_its_deaths(self):
        page = self.table("soak", [
            ["soak", "pods", "200", "seed", "7"],
            self.fault("soak", "shim", "the machine boots, pod 100", "error"),
            ["soak", "shims", "900 KiB", "910 KiB", "at most 512 KiB more"],
        ])
        self.assertIn("200 pods, seed 7.", page)
        self.assertIn("| shims | 900 KiB | 910 KiB | at most 512 KiB more |", page)
        self.assertIn("| the machine boots, pod 100 | error, 1.5 s |", page)


class Share(Case):
    def share(self, tests, both, times=None):
        files = [self.write("tests", "".join(f"{test}: test\n" for test in tests) + "\n2 tests, 0 benchmarks\n"), self.write("both", both)]
        if times is not None:
            self.write("times", "".join(f"{seconds} {name}\n" for name, seconds in times.items()))
        done = self.call(TESTS / "host/share", *files, self.root / "times", self.root)
        if done.returncode:
            return done.stderr
        return {name: (self.root / name).read_text().splitlines() for name in ("2.3-a", "2.3-b", "1.6")}

    def test_every_test_runs_once_however_long_tests_take(self):
        chance = random.Random(7)
        for count in (1, 2, 3, 40):
            tests = [f"module{number % 5}::test{number}" for number in range(count)]
            for longest in (0.0, 1.0, 5000.0):
                known = [test for test in tests if chance.random() < 0.7]
                shares = self.share(tests, "module0::\n", {test: chance.random() * longest for test in known})
                self.assertEqual(sorted(shares["2.3-a"] + shares["2.3-b"]), sorted(tests))
                self.assertEqual(shares["1.6"], [test for test in tests if test.startswith("module0::")])

    def test_a_test_that_takes_longer_than_all_others_has_a_host_to_itself(self):
        shares = self.share([f"m::t{number}" for number in range(10)], "", {"m::t3": 2000.0, "gone::t": 5.0})
        self.assertEqual(shares["2.3-a"], ["m::t3"])
        self.assertEqual(len(shares["2.3-b"]), 9)

    def test_patterns_name_a_test_or_a_module_and_nothing_else(self):
        shares = self.share(["a::one", "a::one_more", "ab::two", "b::three"], "# words\n\na::one\nb::\n")
        self.assertEqual(shares["1.6"], ["a::one", "b::three"])

    def test_a_pattern_of_no_test_is_named(self):
        for pattern in ("a::gone", "gone::", "a"):
            self.assertIn(f"there is no test {pattern}", self.share(["a::one"], f"{pattern}\n"))

    def test_the_list_of_both_names_tests_that_are_there(self):
        names = []
        for file in sorted((TESTS / "e2e").glob("*.rs")):
            lines = file.read_text().splitlines()
            for number, line in enumerate(lines):
                if line == "#[test]":
                    names.append(f"{file.stem}::{lines[number + 1].removeprefix('fn ').split('(')[0]}")
        self.assertIsInstance(self.share(names, (TESTS / "e2e/both-containerds").read_text()), dict)


def spec(name, status="passed", message="", name_prefix="[It] [k8s.io] "):
    """A spec in critest's report."""
    inner = {"passed": "", "skipped": f"<skipped message={quoteattr(message)}/>", "panicked": f"<error message={quoteattr(message)}/>"}
    inner = inner.get(status, f"<failure message={quoteattr(message)}/>")
    return f'<testcase name={quoteattr(name_prefix + name)} status="{status}" time="1.5">{inner}</testcase>'


class Judge(Case):
    EXPECTED = "# words\n\n*: never => => nobody has it\nfargate,sandbox: HostPID => not supported: HostPID => it is refused\nrunc@1.6: old => => 1.6 says so\n"

    def judge(self, *specs, containerd="2.3", column="fargate", left="", expected=EXPECTED):
        report = self.root / "report"
        report.mkdir(exist_ok=True)
        self.write("report/junit.xml", f"<testsuites><testsuite>{''.join(specs)}</testsuite></testsuites>")
        if left is not None:
            self.write("report/left", left)
        done = self.call(sys.executable, TESTS / "critest/judge.py", self.write("expected", expected), containerd, column, report, self.root / "verdict.json")
        self.verdict = json.loads((self.root / "verdict.json").read_text())
        return done

    def said(self, name):
        found = self.verdict["specs"]["[It] [k8s.io] " + name]
        return found["verdict"], found["reason"]

    def assert_counts(self, done, passed, failed, skipped=0):
        verdict = "ok" if done.returncode == 0 else "FAILED"
        self.assertEqual(last(done), f"test result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out")

    def test_specs_that_pass_and_a_host_that_is_clean_are_a_success(self):
        done = self.judge(spec("one"), spec("two"), spec("three", "skipped", "skipped - no such feature"), spec("four", "skipped", "skipped"))
        self.assertEqual(done.returncode, 0)
        self.assert_counts(done, 2, 0, skipped=2)
        self.assertEqual(self.said("three"), ("skipped", "no such feature"))
        self.assertEqual((self.verdict["containerd"], self.verdict["column"], self.verdict["left"]), ("2.3", "fargate", ""))

    def test_a_failed_spec_is_a_failure_with_its_words(self):
        for status in ("failed", "panicked", "timedout", "interrupted"):
            done = self.judge(spec("one"), spec("two", status, "it broke"))
            self.assertEqual(done.returncode, 1, status)
            self.assert_counts(done, 1, 1)
            self.assertEqual(self.said("two"), ("failed", "it broke"))
            self.assertIn("two: it broke", done.stdout)

    def test_a_spec_that_fails_as_expected_counts_as_passed(self):
        done = self.judge(spec("one"), spec("HostPID is true", "failed", "Pod: not supported: HostPID, sorry"), spec("never", "failed", "whatever"))
        self.assertEqual(done.returncode, 0)
        self.assert_counts(done, 3, 0)
        self.assertIn("1 passed, 2 failed as expected, 0 skipped by critest, 0 failed\n", done.stdout)
        self.assertEqual(self.said("HostPID is true"), ("expected", "it is refused"))

    def test_a_spec_that_fails_with_other_words_than_expected_is_a_failure(self):
        done = self.judge(spec("one"), spec("HostPID is true", "failed", "timed out"))
        self.assert_counts(done, 1, 1)
        self.assertEqual(self.said("HostPID is true"), ("failed", "timed out"))

    def test_a_spec_that_passes_and_is_expected_to_fail_is_a_failure_and_said(self):
        done = self.judge(spec("one"), spec("HostPID is true"))
        self.assert_counts(done, 1, 1)
        self.assertEqual(self.said("HostPID is true"), ("failed", "it passed, and is expected to fail"))

    def test_expectations_are_of_their_column_and_containerd(self):
        refused = spec("HostPID is true", "failed", "not supported: HostPID")
        for column, ok in {"fargate": True, "sandbox": True, "guest": False, "runc": False}.items():
            self.assertEqual(self.judge(spec("one"), refused, column=column).returncode, 0 if ok else 1, column)
        for containerd, ok in {"1.6": True, "2.3": False}.items():
            done = self.judge(spec("one"), spec("old", "failed", "x"), column="runc", containerd=containerd)
            self.assertEqual(done.returncode, 0 if ok else 1, containerd)

    def test_what_is_left_on_the_host_is_a_failure(self):
        done = self.judge(spec("one"), left="> /run/ravelin/abc\n")
        self.assertEqual(done.returncode, 1)
        self.assertIn("left behind:\n> /run/ravelin/abc\n", done.stdout)
        self.assertEqual(self.verdict["left"], "> /run/ravelin/abc\n")

    def test_a_host_that_ended_before_it_was_looked_at_is_told_apart_from_a_clean_one(self):
        done = self.judge(spec("one"), left=None)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(self.verdict["left"], "the host ended too early\n")

    def test_a_run_in_which_nothing_passed_is_no_success(self):
        self.assertEqual(self.judge(spec("one", "skipped", "skipped")).returncode, 1)

    def test_the_suites_own_nodes_are_no_specs_unless_they_fail(self):
        self.assert_counts(self.judge(spec("one"), spec("[BeforeSuite]", name_prefix="")), 1, 0)
        self.assert_counts(self.judge(spec("one"), spec("[BeforeSuite]", "failed", "no runtime", name_prefix="")), 1, 1)

    def test_a_run_without_a_report_has_no_verdict(self):
        done = self.call(sys.executable, TESTS / "critest/judge.py", self.write("expected", self.EXPECTED), "2.3", "runc", self.root, self.root / "verdict.json")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("critest left no report", done.stderr)
        self.assertFalse((self.root / "verdict.json").exists())

    def test_every_line_of_our_expectations_can_be_read(self):
        expected = (TESTS / "critest/expected").read_text()
        self.assertEqual(self.judge(spec("one"), expected=expected).returncode, 0)
        words = "Pod not supported on Fargate: fields not supported: HostPID"
        self.assertEqual(self.judge(spec("one"), spec("runtime should support HostPID", "failed", words), expected=expected).returncode, 0)


class Conformance(Case):
    def page(self, *runs):
        files = [self.write(f"{number}.json", json.dumps(run)) for number, run in enumerate(runs)]
        done = self.call(sys.executable, TESTS / "critest/conformance.py", *files)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def run_of(self, containerd, column, left="", **verdicts):
        specs = {f"[It] [k8s.io] {name}": {"verdict": verdict, "reason": reason} for name, (verdict, reason) in verdicts.items()}
        return {"containerd": containerd, "column": column, "commit": "abc1234", "left": left, "specs": specs}

    def row(self, page, first):
        """The cells of the first row that begins with this one: there are two heads, of the same columns."""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
        return next(row[1:] for row in rows if row[0] == first)

    def test_verdicts_are_counted_and_shown_in_their_columns(self):
        page = self.page(
            self.run_of("2.3", "fargate", one=("passed", ""), two=("failed", "it broke\nand more"), three=("expected", "refused")),
            self.run_of("1.6", "runc", one=("passed", ""), two=("skipped", "")),
        )
        self.assertEqual(self.row(page, ""), ["runc, 1.6", "fargate, 1.6", "guest, 1.6", "runc, 2.3", "fargate, 2.3", "guest, 2.3", "sandbox, 2.3"])
        self.assertEqual(self.row(page, "passed"), ["1", "0", "0", "0", "1", "0", "0"])
        self.assertEqual(self.row(page, "failed"), ["0", "0", "0", "0", "1", "0", "0"])
        self.assertEqual(self.row(page, "two"), ["skipped", "–", "–", "–", "**FAILED** [2]", "–", "–"])
        self.assertEqual(self.row(page, "three")[4], "differs [1]")
        self.assertTrue(page.endswith("\n## Reasons\n\n1. refused\n2. it broke\n"))

    def test_a_column_without_a_whole_run_is_said(self):
        page = self.page(self.run_of("2.3", "fargate", one=("passed", "")))
        self.assertEqual(self.row(page, "at commit"), ["no run"] * 4 + ["abc1234"] + ["no run"] * 2)
        self.assertEqual(self.row(page, "left on the host afterwards"), ["–"] * 4 + ["nothing"] + ["–"] * 2)

    def test_what_a_run_left_is_shown(self):
        page = self.page(self.run_of("2.3", "fargate", "> a mount\n", one=("passed", "")))
        self.assertEqual(self.row(page, "left on the host afterwards")[4], "**something**")
        self.assertIn("fargate, 2.3 left behind:\n\n```\n> a mount\n```", page)


class CritestRun(Case):
    """One column: a host, and the judge."""

    def setUp(self):
        super().setUp()
        self.copy("host/lib.sh", "critest/run", "critest/judge.py", "critest/expected")
        self.script("tests/critest/build", "#!/bin/sh\nexit 0\n")
        self.script("tests/critest/build-go", "#!/bin/sh\nexit 0\n")
        self.script("tests/host/run", HOST)
        self.kept = self.root / "target/critest/verdicts/2.3-runc.json"

    def column(self, *turns, arguments=()):
        self.write("plan", json.dumps({"2.3-runc": turns}))
        return self.call(self.root / "tests/critest/run", "--column", "runc", *arguments)

    def report(self, *specs):
        return {"critest/junit.xml": f"<testsuites>{''.join(specs)}</testsuites>", "critest/left": ""}

    def test_a_whole_run_is_judged_and_its_verdict_kept(self):
        done = self.column({"status": 0, "logs": self.report(spec("one"))})
        self.assertEqual((done.returncode, self.calls()), (0, ["2.3-runc 1"]))
        self.assertTrue(self.kept.exists())

    def test_a_failure_is_not_run_again(self):
        done = self.column({"status": 1, "logs": self.report(spec("one"), spec("two", "failed", "it broke"))})
        self.assertEqual((done.returncode, self.calls()), (1, ["2.3-runc 1"]))
        self.assertEqual(last(done), "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out")

    def test_a_host_that_ends_without_a_verdict_is_started_once_more(self):
        done = self.column({"status": 125}, {"status": 0, "logs": self.report(spec("one"))})
        self.assertEqual((done.returncode, self.calls()), (0, ["2.3-runc 1", "2.3-runc 2"]))
        self.assertIn("the host ended without a verdict", done.stderr)

    def test_two_hosts_without_a_verdict_are_none_and_an_older_verdict_does_not_stay(self):
        self.write(self.kept.relative_to(self.root), "{}")
        done = self.column({"status": 125}, {"status": 125})
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertFalse(self.kept.exists())

    def test_a_run_of_some_specs_leaves_the_whole_runs_verdict(self):
        self.write(self.kept.relative_to(self.root), "{}")
        done = self.column({"status": 0, "logs": self.report(spec("one"))}, arguments=("-ginkgo.focus", "one"))
        self.assertEqual((done.returncode, self.kept.read_text()), (0, "{}"))


class CritestAll(Case):
    """All columns, each of which is a script here."""

    COLUMN = """#!/bin/bash
[ "$2 $4" != "$BAD" ] || { echo "$SAYS"; exit 1; }
echo "one spec"; echo "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out"
"""

    def all(self, **environment):
        self.copy("host/lib.sh", "host/summary", "critest/all", "critest/conformance.py")
        self.script("tests/critest/build", "#!/bin/sh\nexit 0\n")
        self.script("tests/critest/run", self.COLUMN)
        self.write("target/critest/verdicts/2.3-runc.json", json.dumps({"containerd": "2.3", "column": "runc", "commit": "c", "left": "", "specs": {}}))
        (self.root / "docs").mkdir()
        return self.call(self.root / "tests/critest/all", **environment)

    def test_all_columns_are_added_up_and_the_page_is_written(self):
        done = self.all(BAD="", SAYS="")
        self.assertEqual((done.returncode, last(done)), (0, "test result: ok. 35 passed; 0 failed; 7 ignored; 0 measured; 0 filtered out"))
        self.assertIn("# Conformance", (self.root / "docs/conformance.md").read_text())

    def test_a_failed_column_fails_all(self):
        done = self.all(BAD="1.6 guest", SAYS="test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out")
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 34 passed; 1 failed; 7 ignored; 0 measured; 0 filtered out"))
        self.assertNotIn("no verdict", done.stderr)

    def test_a_column_without_a_verdict_is_said_and_fails_all(self):
        done = self.all(BAD="2.3 sandbox", SAYS="something")
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 30 passed; 1 failed; 6 ignored; 0 measured; 0 filtered out"))
        self.assertIn("containerd 2.3, sandbox: no verdict", done.stderr)


class EndToEnd(Case):
    """The end-to-end tests' script, whose hosts say what they are told to."""

    LANES = ("2.3-a", "1.6", "2.3-b")

    def run_on(self, plan, *arguments, **environment):
        self.copy("host/e2e", "host/lib.sh", "host/share", "host/summary")
        self.script("tests/host/run", HOST)
        self.write("tests/e2e/both-containerds", "m::one\n")
        self.script("target/dist/usr/local/libexec/ravelin/e2e-tests", "#!/bin/sh\nprintf 'm::%s: test\\n' one two three four five six seven eight\n")
        (self.root / "target/host").mkdir()
        self.write("plan", json.dumps(plan))
        return self.call(self.root / "tests/host/e2e", *arguments, **environment)

    def passes(self):
        return {name: [{"says": closing(2), "logs": {"e2e-times.log": f"  12.5 s m::{name}\n"}}] for name in self.LANES}

    def test_all_hosts_are_added_up_and_times_kept(self):
        done = self.run_on(self.passes())
        self.assertEqual((done.returncode, last(done)), (0, "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"))
        self.assertEqual(self.calls(), ["1.6 1", "2.3-a 1", "2.3-b 1"])
        self.assertEqual((self.root / "target/host/e2e-times").read_text().splitlines(), ["12.5 m::1.6", "12.5 m::2.3-a", "12.5 m::2.3-b"])

    def test_a_failed_test_is_a_failure_with_its_words_and_is_not_run_again(self):
        words = "test m::two ... FAILED\n\nfailures:\n\n---- m::two stdout ----\nit broke\n\nfailures:\n    m::two\n\n"
        done = self.run_on({**self.passes(), "2.3-b": [{"says": words + closing(1, failed=1), "status": 101}]})
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"))
        self.assertIn("2.3-b: it broke\n", done.stderr)
        self.assertEqual(self.calls(), ["1.6 1", "2.3-a 1", "2.3-b 1"])

    def test_a_host_without_a_verdict_is_started_once_more(self):
        done = self.run_on({**self.passes(), "1.6": [{"says": "test m::one ... ok\n", "status": 125}, {"says": closing(2)}]})
        self.assertEqual((done.returncode, last(done)), (0, "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"))
        self.assertIn("1.6: the host ended without a verdict, and no test had failed", done.stderr)
        self.assertEqual(self.calls(), ["1.6 1", "1.6 2", "2.3-a 1", "2.3-b 1"])

    def test_a_host_on_which_a_test_had_failed_is_not_started_again(self):
        done = self.run_on({**self.passes(), "1.6": [{"says": "test m::one ... FAILED\n", "status": 125}, {"says": closing(2)}]})
        self.assertEqual(done.returncode, 1)
        self.assertEqual(self.calls(), ["1.6 1", "2.3-a 1", "2.3-b 1"])

    def test_a_host_that_never_gives_a_verdict_shows_in_the_last_line(self):
        done = self.run_on({**self.passes(), "1.6": [{"status": 125}, {"status": 125}]})
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"))
        self.assertIn("the run on 1.6 ended with status 125", done.stderr)
        self.assertIn("1.6: no verdict", done.stderr)

    def test_whole_runs_every_test_on_both_versions_and_no_host_without_tests(self):
        done = self.run_on(self.passes(), "--whole")
        self.assertEqual((done.returncode, last(done)), (0, "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"))
        self.assertIn("containerd 1.6: 8 tests", done.stderr)
        # All of its tests are on the other host: without names the program would run them once more.
        self.assertEqual(self.calls(), ["1.6 1", "2.3-a 1"])
        self.assertIn("12.5 s m::1.6", done.stderr)

    def test_chosen_tests_run_on_both_versions_or_on_the_named_ones(self):
        plan = {"1.6": [{"says": closing(1)}], "2.3": [{"says": closing(1)}]}
        self.assertEqual(last(self.run_on(plan, "one")), "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out")
        self.assertEqual(self.calls(), ["1.6 1", "2.3 1"])


class WholeTest(Case):
    """What continuous integration runs, with a `make` that says what it is told to."""

    MAKE = '#!/bin/bash\nname=${*: -1}; name=${name//-/_}; eval "${!name}"\n'

    def all(self, **parts):
        self.copy("host/test", "host/lib.sh", "host/summary")
        self.script("bin/make", self.MAKE)
        said = {"host": "true", "test_unit": f"echo '{closing(3)}{closing(4)}'", "test_agent": f"echo '{closing(5)}'", "test_e2e": f"echo '{closing(6)}'"}
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return self.call(self.root / "tests/host/test", PATH=path, **{**said, **parts})

    def test_the_last_line_adds_up_all_parts(self):
        done = self.all()
        self.assertEqual((done.returncode, last(done)), (0, "test result: ok. 18 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"))

    def test_everything_runs_when_something_fails(self):
        done = self.all(test_unit=f"echo '{closing(3, failed=1)}'; false")
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 14 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"))

    def test_a_part_that_fails_without_a_failed_test_shows_in_the_last_line(self):
        for part in ("test_unit", "test_agent", "test_e2e"):
            done = self.all(**{part: "echo it cannot be built; false"})
            self.assertEqual(done.returncode, 1)
            self.assertRegex(last(done), r"^test result: FAILED\. 1[123] passed; 1 failed;", part)
        done = self.all(test_unit=f"echo '{closing(7)}'; false")
        self.assertEqual((done.returncode, last(done)), (1, "test result: FAILED. 18 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"))


class HostRun(Case):
    """The emulated host, whose emulator is a script here."""

    # Finds the run's folder in its arguments, and opens the outputs as an emulator does.
    EMULATOR = """#!/bin/bash
for argument; do case $argument in local,path=*,mount_tag=run,*) share=${argument#local,path=}; share=${share%%,*} ;; esac; done
eval "$DOES"
"""

    def host(self, does):
        self.copy("host/run", "host/lib.sh")
        for name in ("host/build-image", "host/bake", "images/build"):
            self.script(f"tests/{name}", f"#!/bin/sh\necho {self.root}\n")
        (self.root / "tests/host/guest").mkdir()
        self.script("bin/qemu-system-x86_64", self.EMULATOR)
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return self.call(self.root / "tests/host/run", "--log", "l", "--", "true", PATH=path, DOES=does, RAVELIN_BOOT_TIMEOUT="2", RAVELIN_HOST_TMP=str(self.root))

    def test_the_commands_output_and_status_come_out(self):
        for status in (0, 3, 124):
            done = self.host(f"exec > $share/out 2> $share/err; touch $share/up; echo said; echo complained >&2; echo {status} > $share/status")
            self.assertEqual((done.returncode, done.stdout), (status, "said\n"))
            self.assertIn("complained\n", done.stderr)
            shutil.rmtree(self.root / "tests")

    def test_a_host_that_dies_before_the_command_ended_is_told_apart(self):
        done = self.host("exec > $share/out 2> $share/err; touch $share/up; echo begun")
        self.assertEqual((done.returncode, done.stdout), (125, "begun\n"))
        self.assertIn("went down before the command ended", done.stderr)

    def test_a_host_that_cannot_even_be_started_is_told_apart(self):
        done = self.host("echo no such machine >&2; exit 1")
        self.assertEqual(done.returncode, 125)
        self.assertIn("no such machine", done.stderr)

    def test_a_host_that_does_not_come_up_is_told_apart(self):
        done = self.host("exec > $share/out 2> $share/err; exec sleep 100")
        self.assertEqual(done.returncode, 125)
        self.assertIn("did not come up in time", done.stderr)

    def test_a_host_whose_kernel_panics_is_told_apart(self):
        done = self.host("exec > $share/out 2> $share/err; echo Kernel panic - not syncing > $share/logs/kernel.log; exec sleep 100")
        self.assertEqual(done.returncode, 125)
        self.assertIn("had a kernel panic", done.stderr)


if __name__ == "__main__":
    began = time.monotonic()
    result = unittest.main(exit=False).result
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    ok = result.testsRun > 0 and not failed
    print(f"test result: {'ok' if ok else 'FAILED'}. {max(0, result.testsRun - failed - len(result.skipped))} passed; {failed} failed; "
          f"{len(result.skipped)} ignored; 0 measured; 0 filtered out; finished in {time.monotonic() - began:.2f}s")
    sys.exit(not ok)
