"""oauth2-proxy's options in our settings."""

from __future__ import annotations

from authservice.migrate import listed, people, places, provider, sessions
from authservice.migrate.options import Options
from authservice.migrate.plan import Plan

POLICY_PATH = "/etc/authservice/policies/from-oauth2-proxy.yaml"
"""Where a policy is looked for when nobody says otherwise. Until it is there, the service does not start."""


def migrate(options: Options, *, gateway: str = "", policy_path: str = POLICY_PATH) -> Plan:
    """What these options are with us. ``gateway`` says who asks, where that is known. Raises
    `options.OptionsError` for values that mean nothing."""
    plan = Plan()
    provider.provider(options, plan)
    places.addresses(options, plan)
    passes_on = places.gateway(options, plan, gateway)
    people.people(options, plan, policy_path)
    places.headers(options, plan, passes_on)
    provider.programs(options, plan)
    sessions.cookie(options, plan)
    sessions.store(options, plan)
    places.server(options, plan)
    listed.rest(options, plan)
    return plan
