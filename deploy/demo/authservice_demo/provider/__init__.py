"""A small OpenID provider for the demo: real protocol, invented people, everything in memory.

Authorization code flow with PKCE (S256, required), ID tokens signed with RS256, rotating refresh
tokens, userinfo, introspection, revocation, RP-initiated and back-channel logout, and a switch
that rotates the signing key. A restart forgets every session, token and key.
"""
