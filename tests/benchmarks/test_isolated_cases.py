"""Tests of the process that measures cases: one that does not finish costs no other."""

from isolated_cases import run_cases


def test_a_case_that_fails_or_crashes_leaves_a_reason_and_the_others_run():
    cases = ["[{'value': 1}, {'value': 2}]", "[{'value': 1 / 0}]", "__import__('os')._exit(3)"]
    cases.append("[{'value': 3}]")
    results = list(run_cases(eval, cases, case_seconds=300, total_seconds=1000))
    assert [case for case, _, _ in results] == cases
    assert [rows for _, rows, _ in results] == [[{"value": 1}, {"value": 2}], [], [], [{"value": 3}]]
    assert [reason for _, _, reason in results] == [
        "",
        "ZeroDivisionError: division by zero",
        "its process ended with exit code 3",
        "",
    ]


def test_a_case_that_hangs_is_stopped_and_cases_after_the_end_of_the_time_do_not_run():
    cases = ["__import__('time').sleep(100)", "[{'value': 1}]"]
    assert list(run_cases(eval, cases, case_seconds=60, total_seconds=1)) == [
        (cases[0], [], "stopped after 1 s"),
        (cases[1], [], "not run: the 1 s for all cases were over"),
    ]
