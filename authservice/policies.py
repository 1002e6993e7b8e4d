"""The policies of a deployment: what the settings name, read and compiled. Part of the composition root.

A start, ``check-config`` and every later look at the files load them in the same way, so that all of them
find the same problems.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from authservice.ops import Counts
from authservice.policy import workloads
from authservice.policy.compile import PolicySet, compile
from authservice.policy.current import Policies
from authservice.policy.outputs import output_problems
from authservice.policy.read import files_of, read
from authservice.policy.resources import JwtRule, Place, PolicyErrors, RequestAuthentication
from authservice.settings import Settings

log = logging.getLogger(__name__)

RESOURCES, WORKLOADS = "resources", "workloads.yaml"
"""What a copy of policies has in it."""


class KeptPolicies:
    """The last good policies in a folder that the workers of one server share.

    A worker that takes a dead one's place would otherwise not start while faulty policies are there, and with it the
    whole server would end, though the others go on with the old ones.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._link = folder / "policies"

    def save(self, files: Sequence[Path], unchanged: Callable[[], bool]) -> None:
        """Copies these files; the copy takes the former one's place as a whole."""
        fresh = self._link.with_name(f"policies-{secrets.token_hex(8)}")
        try:
            with open(self._link.with_name("policies.lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    self._copy(files, fresh)
                    if unchanged():
                        fresh = self._swapped(fresh)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
        except OSError as error:
            log.warning("good policies are not kept for later workers: %s", type(error).__name__)

    def _copy(self, files: Sequence[Path], into: Path) -> None:
        named = workloads.file_of(self._settings.policy_workloads)
        (into / RESOURCES).mkdir(parents=True)
        for number, file in enumerate(files):
            # Any name may have been given for a single file; of a folder only these are read, by name.
            place = into / (WORKLOADS if file == named else f"{RESOURCES}/{number:06}.yaml")
            place.write_bytes(file.read_bytes())

    def _swapped(self, fresh: Path) -> Path:
        """The copy that counted until now."""
        former = self._link.resolve()
        pointer = fresh.with_suffix(".link")
        pointer.symlink_to(fresh.name)
        pointer.replace(self._link)
        return former

    def load(self) -> PolicySet | None:
        """What was saved last; ``None`` without any, or when it is good no more."""
        named = self._link / WORKLOADS
        inside = replace(
            self._settings,
            policy_path=self._link / RESOURCES,
            policy_workloads=str(named) if named.exists() else self._settings.policy_workloads,
        )
        try:
            return load(inside)
        except PolicyErrors:
            return None


def build(settings: Settings, counts: Counts, shared: Path | None = None) -> Policies | None:
    """The policies of ``POLICY_PATH``, if there are any. ``shared`` is a folder of all workers. Raises
    `PolicyErrors`."""
    if settings.policy_path is None:
        return None
    kept = KeptPolicies(settings, shared) if shared is not None else None
    return Policies(lambda: load(settings), lambda: files(settings), counts=counts, kept=kept)


def load(settings: Settings) -> PolicySet:
    """What is in ``POLICY_PATH`` now, for the workloads that are named now. Raises `PolicyErrors`."""
    path = settings.policy_path or Path()
    resources = read([path])
    if not resources:
        raise PolicyErrors([(Place(str(path), 1), "there is no policy here, so that everything would be allowed")])
    named = named_workloads(settings.policy_workloads)
    trusts = bool(settings.trusted_proxies)
    rules = [rule for one in resources if isinstance(one, RequestAuthentication) for rule in one.rules]
    clashes = [*output_problems(rules, settings.told_headers), *_own_tokens(rules, settings)]
    try:
        compiled = compile(
            resources,
            named,
            root_namespace=settings.policy_root_namespace,
            knows_addresses=trusts,
            knows_peers=trusts and bool(settings.policy_peer_header),
        )
    except PolicyErrors as errors:
        raise PolicyErrors([*errors.problems, *clashes]) from None
    if clashes:
        raise PolicyErrors(clashes)
    return compiled


def _own_tokens(rules: Iterable[JwtRule], settings: Settings) -> Iterator[tuple[Place, str]]:
    """An application that was told who somebody is, in an assertion, must not become them before all others."""
    if settings.upstream_assertion_header:
        for rule in rules:
            if rule.issuer == settings.assertion_issuer:
                place = Place(rule.place.file, rule.place.line, f"{rule.place.field}.issuer")
                yield place, f"{rule.issuer} is this service, whose assertions log nobody in"


def named_workloads(text: str) -> workloads.Workloads:
    """What ``POLICY_WORKLOADS`` says, in the setting or in its file. Raises `PolicyErrors`."""
    try:
        return workloads.parse(text)
    except ValueError as error:
        file = str(workloads.file_of(text) or "POLICY_WORKLOADS")
        raise PolicyErrors([_placed(line, file) for line in str(error).splitlines()]) from None


def _placed(problem: str, file: str) -> tuple[Place, str]:
    """A problem of `workloads.parse`, which begins with its line where it has one."""
    line, _, sentence = problem.removeprefix("line ").partition(": ")
    return (Place(file, int(line)), sentence) if line.isdecimal() else (Place(file, 1), problem)


def files(settings: Settings) -> list[Path]:
    """The files that `load` reads. Raises `PolicyErrors` for a folder that cannot be listed."""
    named = workloads.file_of(settings.policy_workloads)
    found = [] if settings.policy_path is None else files_of(settings.policy_path)
    return found if named is None else [*found, named]


def problems(settings: Settings, shared: Path | None = None) -> Iterator[str]:
    """What keeps policies from being taken, each with its place; nothing where others can go on with."""
    try:
        if settings.policy_path is not None:
            load(settings)
    except PolicyErrors as errors:
        if shared is None or KeptPolicies(settings, shared).load() is None:
            yield from told(errors, settings)


def told(errors: PolicyErrors, settings: Settings) -> Iterator[str]:
    """Each problem in the form of a setting's."""
    named = str(workloads.file_of(settings.policy_workloads))
    for place, sentence in errors.problems:
        yield f"{'POLICY_WORKLOADS' if place.file == named else 'POLICY_PATH'}: {place}: {sentence}."
