"""Policies asked about requests without a service, a session or a gateway.

`Rehearsal` answers what the live judge would answer on account of policies alone, with the code that the live
judge runs: the same policy set, the same question, the same verification of tokens. ``authservice policy``
asks it; files of cases are read in `rehearsal.cases`.
"""
