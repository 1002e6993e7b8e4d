"""How values of policies are compared: the values of one field become one test of what a request shows.

The matching rules M16 to M31, pure: nothing here knows rules or requests. A leading ``*`` is looked at
first, and in no other place but the end has it a meaning (M17).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from authservice.policy.resources import Network
from authservice.policy.templates import canonical_text, is_template, template

TextTest = Callable[[str], bool]
Spellings = tuple[tuple[int, int], ...]
"""An address as version and number; two of them where one IPv6 address stands for an IPv4 address."""

_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def any_text(text: str) -> bool:
    """What ``*`` stands for in claims, paths and principals: one or more characters, no newline (M20)."""
    return bool(text) and "\n" not in text


def any_line(_: str) -> bool:
    """What ``*`` stands for in headers, hosts and methods: there is one, even an empty one (M20)."""
    return True


def texts(values: Sequence[str], present: TextTest = any_text, spelled: Callable[[str], str] = str) -> TextTest:
    """Whether a text is any of the values, each in its form (M16): ``exact``, ``prefix*``, ``*suffix``, or
    ``*``, which is what ``present`` says. What a form holds is compared as ``spelled``."""
    exact = frozenset(spelled(value) for value in values if not (value.startswith("*") or value.endswith("*")))
    suffixes = tuple(spelled(value[1:]) for value in values if value.startswith("*") and value != "*")
    prefixes = tuple(spelled(value[:-1]) for value in values if value.endswith("*") and not value.startswith("*"))
    tests: list[TextTest] = []
    if exact:
        tests.append(exact.__contains__)
    if prefixes:
        tests.append(lambda text: text.startswith(prefixes))
    if suffixes:
        tests.append(lambda text: text.endswith(suffixes))
    if "*" in values:
        tests.append(present)
    return any_of(tests)


def lines(values: Sequence[str]) -> TextTest:
    """The same for methods and headers."""
    return texts(values, any_line)


def hosts(values: Sequence[str]) -> TextTest:
    """The same for hosts as clients name them, with their port and in any letter case (M22). The host to
    be tested is lower-case already."""
    return texts(values, any_line, lambda value: value.translate(_ASCII_LOWER))


def paths(values: Sequence[str]) -> TextTest:
    """The same for canonical paths, with templates among the values (M25 to M30)."""
    tests = [texts([value for value in values if not is_template(value)], spelled=canonical_text)]
    tests.extend(_template_test(value) for value in values if is_template(value))
    return any_of(tests)


def _template_test(value: str) -> TextTest:
    matches = template(value).fullmatch
    return lambda path: matches(path) is not None


def networks(values: Iterable[Network]) -> Callable[[Spellings], bool]:
    """Whether an address, as `read_address` gives it, lies in any of the networks (M31). The cost grows
    with the prefix lengths among them, not with the networks."""
    bases: dict[tuple[int, int], set[int]] = {}
    for network in values:
        bases.setdefault((network.version, int(network.netmask)), set()).add(int(network.network_address))
    table = tuple((version, mask, frozenset(known)) for (version, mask), known in bases.items())

    def matches(spellings: Spellings) -> bool:
        for of, number in spellings:
            for version, mask, known in table:
                if version == of and number & mask in known:
                    return True
        return False

    return matches


@lru_cache(maxsize=4096)  # reading one costs as much as judging a whole policy
def read_address(text: str) -> Spellings | None:
    """An address as gateways name it, or ``None`` for what is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    spelled = ((address.version, int(address)),)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return (*spelled, (4, int(address.ipv4_mapped)))
    return spelled


def any_of(tests: Sequence[Callable[[str], bool]]) -> TextTest:
    """Whether one of the tests holds; none does when there are none."""
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda text: first(text) or second(text)
    several = tuple(tests)

    def holds(text: str) -> bool:
        for test in several:
            if test(text):
                return True
        return False

    return holds
