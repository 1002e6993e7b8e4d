"""``python -m authservice_demo.provider``: the provider alone, its settings from the environment."""

from __future__ import annotations

import os

from authservice_demo.provider.app import create_app, port_of
from authservice_demo.provider.records import Client
from authservice_demo.serving import serve


def main() -> None:
    """Reads ``DEMO_ISSUER`` and the client's data, and answers until it is stopped."""
    issuer = os.environ["DEMO_ISSUER"]
    client = Client(
        client_id=os.environ["DEMO_CLIENT_ID"],
        client_secret=os.environ["DEMO_CLIENT_SECRET"],
        redirect_uris=tuple(os.environ["DEMO_REDIRECT_URIS"].split()),
        post_logout_redirect_uris=tuple(os.environ.get("DEMO_POST_LOGOUT_REDIRECT_URIS", "").split()),
        backchannel_logout_uri=os.environ.get("DEMO_BACKCHANNEL_LOGOUT_URI", ""),
    )
    serve(create_app(issuer, client), port_of(issuer))


if __name__ == "__main__":
    main()
