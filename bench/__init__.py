"""What a check costs, and beside whom: `python -m bench`, or `make bench`.

Starts everything that it measures, on one core, and the load generator on another; measures rows in
turns, and says ratios with their spread. `rows` is the table of what is measured, `targets` what is
wanted, `bearer` a group that asks the service in this process. Nothing here is part of the service.
"""
