"""The fourteen tests that a journal owes, and where they are.

1. each step fails, is repeated, its undo is repeated, and which one it was: test_journal (``a_failing_step``,
   ``only_the_moment``, ``unwinding_goes_on``), and for the real operations tests/crash
2. a kill after each commit, forwards and unwinding: test_journal (``a_dead_controller``,
   ``unwinding_goes_on``, ``on_the_way_to_the_next_host``), tests/crash, and with SIGKILL tests/process
3. a takeover from an owner that is merely slow: test_journal (``a_slow_old_owner``), test_outages
   (``two_walks_of_one_process``)
4. a signal during a step: test_journal (``a_signal_is_never_lost``), test_claims (``being_committed``)
5. a signal before the wait: the same, and test_claims (``being_written_down``)
6. the deadline survives a failing first step: test_journal (``the_deadline_holds``)
7. claim and scan agree on what is ready: test_claims (``what_is_claimed_is_what_is_ready``)
8. what is finished is never claimed: test_journal (``what_is_finished``), test_claims
9. a host gone while unwinding: test_outages (``a_host_that_is_gone``), test_attention
10. the plan of the previous release: test_journal (``the_plan_of_an_earlier_release``), test_plans_lock
11. two reconcilers and one operation on one instance: test_claims (``controllers_and_submitters``),
    tests/crash/test_phases (``two_reconcilers_and_a_user``)
12. a cancel before, in and after the pivot: test_cancel
13. the database gone for a minute: test_outages
14. clocks that differ by the lease: test_journal (``clocks_differ_by_a_lease``)
"""
