"""What setup.cfg cannot say: two packages live outside ``authservice/``.

``templates/`` sits at the top level, where people who change the look find it, and is installed
as ``authservice.templates``. The demo under ``deploy/demo`` is installed as ``authservice_demo``,
together with the Envoy file it runs, so that it starts from a wheel in an empty directory.
"""

from setuptools import find_packages, setup

OUTSIDE = {
    "authservice.templates": "templates",
    "authservice_demo": "deploy/demo/authservice_demo",
    "authservice_demo.provider": "deploy/demo/authservice_demo/provider",
    "authservice_demo.envoy": "deploy/envoy",
}

setup(
    packages=find_packages(include=["authservice", "authservice.*"]) + list(OUTSIDE),
    package_dir=OUTSIDE,
    package_data={
        "authservice.templates": ["**/*.html", "**/*.css", "**/*.svg"],
        "authservice_demo": ["templates/*.html"],
        "authservice_demo.provider": ["templates/*.html"],
        "authservice_demo.envoy": ["envoy.yaml"],
    },
)
