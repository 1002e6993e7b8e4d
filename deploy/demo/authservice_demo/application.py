"""The application behind the gateway: it has no login of its own and shows who is calling.

It believes the identity headers, as real applications do; the gateway's configuration and
AuthService see to it that nobody else can set them. ``python -m authservice_demo.application``
runs it alone.
"""

from __future__ import annotations

import os

from flask import Flask, Response, jsonify, render_template, request

from authservice_demo.serving import serve

IDENTITY = ("kubeflow-userid", "kubeflow-groups", "Auth-Method")


def create_app(provider_url: str) -> Flask:
    """The application. ``provider_url`` is only shown as a link."""
    app = Flask(__name__)

    @app.get("/headers.json")
    @app.get("/public/headers.json")
    def headers() -> Response:
        """Every header of the request as this application sees it."""
        return jsonify([[name, value] for name, value in request.headers])

    @app.get("/", defaults={"path": ""})
    @app.get("/<path:path>")
    def page(path: str) -> str:
        return render_template(
            "page.html",
            path=request.full_path.rstrip("?"),
            public=path == "public" or path.startswith("public/"),
            identity=[(name, request.headers.get(name, "")) for name in IDENTITY],
            user=request.headers.get(IDENTITY[0], ""),
            headers=list(request.headers),
            provider_url=provider_url,
        )

    return app


if __name__ == "__main__":
    serve(create_app(os.environ["DEMO_ISSUER"]), int(os.environ["DEMO_APPLICATION_PORT"]))
