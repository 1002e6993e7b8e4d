"""What the service speaks with the OpenID provider: OpenID Connect, OAuth 2.0 and JOSE.

`provider` knows the provider's metadata and keys, and `issuers` the keys of further issuers, both
by the rules of `source`; `client` makes the calls; `tokens` decides whether a token is what it
should be, and `verifier` does so with an issuer's keys; `login` puts them together into a login,
`renewal` into newer tokens for one, and `logout` into the end of one; `opaque` asks what a token is
worth that only the provider can read: OpenID Connect Core 1.0
(https://openid.net/specs/openid-connect-core-1_0.html), Discovery 1.0
(https://openid.net/specs/openid-connect-discovery-1_0.html), RP-Initiated Logout 1.0, Back-Channel
Logout 1.0 and Front-Channel Logout 1.0 (https://openid.net/specs/openid-connect-rpinitiated-1_0.html,
…-backchannel-1_0.html, …-frontchannel-1_0.html), OAuth 2.0 (RFC 6749, RFC 6750),
PKCE (RFC 7636), issuer identification (RFC 9207), revocation (RFC 7009), introspection (RFC 7662),
JWT access tokens (RFC 9068), JOSE (RFC 7515, 7517, 7518, 7519). This room knows no gateway, no
session and no web framework.
"""
