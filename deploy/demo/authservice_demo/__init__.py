"""The demo: a provider, an application, AuthService and a real Envoy, started with one command.

``python -m authservice_demo`` starts all four on this machine and prints one address to open;
``--check`` drives a login through them instead and says how each step went. Nothing here is
part of the service, and nothing here is fit for production.
"""
