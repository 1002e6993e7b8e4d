"""What an application can verify by itself: a signed statement of who is calling (``UPSTREAM_ASSERTION_HEADER``).

Without it an application believes whoever reaches it. With it a header holds a short-lived JWT (RFC 7519) that
only this service can make: `keys` are what it signs with and publishes, `allows` puts the statement into allows.
"""
