"""What ingress-nginx makes of the shipped Ingresses, and Traefik of its shipped resources: configurations
that a plain nginx and Traefik run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.resulting_envoy import Places, documents

Json = dict[str, Any]

_ANNOTATION = "nginx.ingress.kubernetes.io/"


def nginx_server(places: Places) -> str:
    """The server block that the controller's template renders for deploy/ingress-nginx, as far as a check
    is concerned. Escaping is a module of the controller's own; addresses that need none stay as they are, and the
    doctor's is escaped by hand."""
    app, site = documents("ingress-nginx/ingress.yaml", places.host)
    (controller,) = documents("ingress-nginx/controller.yaml", places.host)
    told = {name.removeprefix(_ANNOTATION): value for name, value in app["metadata"]["annotations"].items()}
    asked = urlsplit(told["auth-url"])
    # The tests' outside is http, and on a port of its own.
    signin = told["auth-signin"].replace("https://$host", "http://$http_host")
    taken = [name.strip() for name in told["auth-response-headers"].split(",")]
    headers = "\n".join(
        f"auth_request_set $authHeader{number} $upstream_http_{name.lower().replace('-', '_')};\n"
        f"proxy_set_header '{name}' $authHeader{number};"
        for number, name in enumerate(taken)
    )
    (site_path,) = site["spec"]["rules"][0]["http"]["paths"]
    buffer = site["metadata"]["annotations"][f"{_ANNOTATION}proxy-buffer-size"]
    data = controller["data"]
    switch = {"true": "on", "false": "off"}
    return f"""
map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
map $request_uri $escaped_request_uri {{
  default $request_uri;
  "~^(?<page>[^?]*)[?]page=2&sort=%C3%A9$" $page%3Fpage%3D2%26sort%3D%25C3%25A9;
}}
large_client_header_buffers {data["large-client-header-buffers"]};
underscores_in_headers {switch[data["enable-underscores-in-headers"]]};
ignore_invalid_headers {switch[data["ignore-invalid-headers"]]};
server {{
  listen 127.0.0.1:{places.listen};
  server_name {places.host.partition(":")[0]};
  location = {site_path["path"]} {{
    proxy_set_header Host $http_host;
    proxy_pass http://127.0.0.1:{places.site};
  }}
  location {site_path["path"]}/ {{
    proxy_set_header Host $http_host;
    proxy_set_header X-Request-ID $request_id;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Scheme $scheme;
    proxy_buffering off;
    proxy_buffer_size {buffer};
    proxy_buffers 4 {buffer};
    proxy_pass http://127.0.0.1:{places.site};
  }}
  location = /_external-auth-Lw-Prefix {{
    internal;
    access_log off;
    proxy_pass_request_body off;
    proxy_set_header Content-Length "";
    proxy_set_header X-Forwarded-Proto "";
    proxy_set_header X-Request-ID $request_id;
    proxy_set_header Host {asked.hostname};
    proxy_set_header X-Original-URL $scheme://$http_host$request_uri;
    proxy_set_header X-Original-Method $request_method;
    proxy_set_header X-Sent-From "nginx-ingress-controller";
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Auth-Request-Redirect $request_uri;
    proxy_buffering off;
    proxy_buffer_size {told["proxy-buffer-size"]};
    proxy_buffers 4 {told["proxy-buffer-size"]};
    client_max_body_size {told["proxy-body-size"]};
    proxy_request_buffering on;
    proxy_pass_request_headers on;
    proxy_pass http://127.0.0.1:{places.judge}{asked.path};
  }}
  location @signin {{
    internal;
    add_header Set-Cookie $auth_cookie;
    return 302 {signin};
  }}
  location / {{
    auth_request /_external-auth-Lw-Prefix;
    client_max_body_size {told["proxy-body-size"]};
    auth_request_set $auth_cookie $upstream_http_set_cookie;
    add_header Set-Cookie $auth_cookie;
    {headers}
    error_page 401 = @signin;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_http_version 1.1;
    proxy_pass http://127.0.0.1:{places.application};
  }}
}}
"""


def traefik_files(places: Places) -> tuple[str, str]:
    """The static and the dynamic configuration that come of deploy/traefik/kubernetes."""
    found = documents("traefik/kubernetes/authservice.yaml", places.host.partition(":")[0])
    services = {
        "app": places.application,
        "authservice-site": places.site,
    }
    routers: Json = {}
    middlewares: Json = {}
    for document in found:
        name, spec = document["metadata"]["name"], document["spec"]
        if document["kind"] == "Middleware":
            path = urlsplit(spec["forwardAuth"]["address"]).path
            judge = f"http://127.0.0.1:{places.judge}{path}"
            middlewares[name] = {"forwardAuth": {**spec["forwardAuth"], "address": judge}}
            continue
        (route,), (entry_point,) = spec["routes"], spec["entryPoints"]
        routers[name] = {
            "rule": route["match"],
            "entryPoints": [entry_point],
            "service": route["services"][0]["name"],
            "middlewares": [one["name"] for one in route.get("middlewares", [])],
            **({"priority": route["priority"]} if "priority" in route else {}),
        }
    dynamic = {
        "http": {
            "routers": routers,
            "middlewares": middlewares,
            "services": {
                name: {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{port}"}]}}
                for name, port in services.items()
            },
        }
    }
    static = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "entryPoints": {
            "websecure": {
                "address": f"127.0.0.1:{places.listen}",
                "http": {"aliasHeadersStrategy": "delete"},
            }
        },
        "providers": {"file": {"filename": "dynamic.yml"}},
    }
    return yaml.safe_dump(static), yaml.safe_dump(dynamic)


def write_nginx(folder: Path, places: Places, user: str) -> Path:
    """A whole configuration with that server, below ``folder``."""
    scratch = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; {user} pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{scratch}\n{nginx_server(places)}\n}}\n"
    )
    return config
