"""``python -m authservice_demo``: start everything, say what to try, end it with Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from authservice_demo.check import Check, Wrong, examine
from authservice_demo.children import ChildFailed
from authservice_demo.ports import choose_ports
from authservice_demo.provider.people import PEOPLE
from authservice_demo.stack import NEEDED_GROUP, Stack


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 after Ctrl-C or a check that held, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m authservice_demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="drive a login through it, then end")
    parser.add_argument("--free-ports", action="store_true", help="leave the usual ports to others")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="authservice-demo-") as folder:
        stack = Stack(choose_ports(options.free_ports), Path(folder), say)
        try:
            say("Starting the demo:")
            stack.start()
            return check(stack) if options.check else show(stack)
        except ChildFailed as failure:
            say(f"\nThe demo cannot go on: {failure}")
            return 1
        except KeyboardInterrupt:
            say("\nEnding the demo.")
            return 1 if options.check else 0
        finally:
            stack.children.stop()



def say(line: str) -> None:
    print(line, flush=True)


def check(stack: Stack) -> int:
    """Drives the steps and says how they went."""
    say("Checking it through Envoy:")
    try:
        Check(stack, say).run()
        examine(stack, say)
        stack.children.look()
    except Wrong as problem:
        say(f"\nThe demo does not work: {problem}\n{stack.children.tails()}")
        return 1
    say("Everything holds.")
    return 0


def show(stack: Stack) -> int:
    """Says what there is to see, and waits."""
    say(f"\nOpen  {stack.site}/\n\nPeople:")
    for person in PEOPLE.values():
        may = "may see the site" if NEEDED_GROUP in person.groups else "may not: the group is missing"
        say(f"  {person.login:<6} password {person.login:<6} groups {', '.join(person.groups):<14} {may}")
    say(
        f"""
Try:
  - open {stack.site}/reports/2026?page=2 and log in as alice: you come back to that page
  - look at the headers that the application got, then log out
  - log in as bob: you are somebody, but not one of {NEEDED_GROUP}
  - open {stack.site}/public/ without a login
  - claim to be somebody:  curl -H 'kubeflow-userid: mallory' {stack.site}/public/headers.json
  - ask as a program:      curl -i -H 'Accept: application/json' {stack.site}/
  - rotate the signing key or end a session at {stack.provider}/

AuthService's log: {stack.folder}/authservice.log
Ctrl-C ends everything."""
    )
    while True:
        stack.children.look()
        time.sleep(0.3)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
